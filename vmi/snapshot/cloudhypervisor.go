package snapshot

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

// maxState bounds state files, in bytes: those of large machines have about 1 MiB.
const maxState = 64 << 20

// node is a part of state.json: Snapshot of Cloud Hypervisor's vm-migration/src/lib.rs.
type node struct {
	Snapshots map[string]node `json:"snapshots"`
	Data      *struct {
		State json.RawMessage `json:"state"` // a string that holds JSON; before 39.0, bytes
	} `json:"snapshot_data"`
}

// memoryState is the state of the memory manager, as far as it matters.
// Source: MemoryManagerSnapshotData of vmm/src/memory_manager.rs.
type memoryState struct {
	Ranges struct {
		Data []struct {
			GPA    uint64 `json:"gpa"`
			Length uint64 `json:"length"`
		} `json:"data"`
	} `json:"memory_ranges"`
}

// cloudHypervisor returns the layout of the memory file beside a state.json: the
// ranges lie in it one after the other.
func cloudHypervisor(state string) ([]ramfile.Block, error) {
	b, err := readFile(state)
	if err != nil {
		return nil, err
	}
	layout, err := parseCloudHypervisor(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrLayout, state, err)
	}
	return layout, nil
}

func parseCloudHypervisor(b []byte) ([]ramfile.Block, error) {
	var root node
	if err := json.Unmarshal(b, &root); err != nil {
		return nil, err
	}
	mm, ok := root.Snapshots["memory-manager"]
	if !ok || mm.Data == nil {
		return nil, fmt.Errorf("%w: no state of the memory manager", vmi.ErrFormat)
	}
	var text string
	if err := json.Unmarshal(mm.Data.State, &text); err != nil {
		return nil, fmt.Errorf("%w: state of a version before 39", vmi.ErrFormat)
	}
	var m memoryState
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return nil, err
	}
	var layout []ramfile.Block
	off := uint64(0)
	for _, r := range m.Ranges.Data {
		if r.Length > maxLength-off {
			return nil, fmt.Errorf("%w: memory range of %#x bytes", vmi.ErrFormat, r.Length)
		}
		layout = append(layout, ramfile.Block{Phys: vmi.Phys(r.GPA), Off: off, Len: r.Length})
		off += r.Length
	}
	if len(layout) == 0 {
		return nil, fmt.Errorf("%w: no memory ranges", vmi.ErrFormat)
	}
	return layout, nil
}

// maxLength is more than any memory file has, and keeps sums from overflowing.
const maxLength = 1 << 56

// readFile is os.ReadFile for files whose size is somebody else's claim.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("%s: more than %d bytes", path, maxState)
	}
	return b, err
}
