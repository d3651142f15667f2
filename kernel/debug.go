package kernel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

// ErrMismatch: a debug file is of another kernel than the guest runs. The error is a
// *MismatchError.
var ErrMismatch = errors.New("file is of another kernel")

// MismatchError says why a debug file is refused.
type MismatchError struct {
	File        string
	What        string // "build ID", "banner" or "address of SYMBOL"
	Guest, Have string // the guest's and the file's; "none" if there is none
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: %v: its %s is %s, the guest's is %s", e.File, ErrMismatch, e.What, e.Have, e.Guest)
}

// Is makes the error match ErrMismatch.
func (e *MismatchError) Is(target error) bool { return target == ErrMismatch }

// BuildID returns the build ID of the guest's kernel: from VMCOREINFO, else from the
// notes in its memory. It is nil if the kernel was linked without. Source:
// include/asm-generic/vmlinux.lds.h:NOTES.
func (k *Kernel) BuildID() ([]byte, error) {
	if s, err := k.guest.VMCoreInfo.String("BUILD-ID"); err == nil {
		if id, err := hex.DecodeString(s); err == nil && len(id) > 0 {
			return id, nil
		}
	}
	start, err := k.Symbol("__start_notes")
	if err != nil {
		return nil, nil // such a kernel has none that could be found
	}
	stop, err := k.Symbol("__stop_notes")
	if err != nil {
		return nil, nil
	}
	const most = 1 << 16
	if stop < start || stop-start > most {
		return nil, corrupt(start, "__start_notes", "notes end at %s", stop)
	}
	b, err := k.readGrowing(start, int(stop-start))
	if err != nil {
		return nil, err
	}
	return debugfile.BuildID(b), nil
}

// useDebug takes from the files what the user gave them for, once they are known to
// be of this kernel.
func (k *Kernel) useDebug(files []*debugfile.File) error {
	for _, f := range files {
		if err := k.checkDebug(f); err != nil {
			return err
		}
		k.debug = append(k.debug, f)
		if k.types == nil {
			t, err := f.Types()
			switch {
			case err == nil:
				k.types = t
				k.log.Debug("types", "file", f.Path)
			case !errors.Is(err, debugfile.ErrNothing):
				return err
			}
		}
		syms, err := f.Symbols()
		switch {
		case err == nil:
			k.extra = append(k.extra, syms.Slid(k.guest.KASLROffset))
		case !errors.Is(err, debugfile.ErrNothing):
			return err
		}
	}
	return nil
}

// checkDebug says whether f is of the kernel that runs.
func (k *Kernel) checkDebug(f *debugfile.File) error {
	if f.Kind == debugfile.SystemMap {
		return k.checkSystemMap(f)
	}
	id, err := k.BuildID()
	if err != nil {
		return err
	}
	mismatch := &MismatchError{File: f.Path, What: "build ID", Guest: idText(id), Have: idText(f.BuildID)}
	switch {
	case id != nil && f.BuildID != nil:
		if !bytes.Equal(id, f.BuildID) {
			return mismatch
		}
		return nil
	case f.Banner == "":
		return mismatch
	case f.Banner != k.guest.Banner:
		return &MismatchError{File: f.Path, What: "banner", Guest: k.guest.Banner, Have: f.Banner}
	}
	return nil
}

func idText(id []byte) string {
	if id == nil {
		return "none"
	}
	return hex.EncodeToString(id)
}

// checkSystemMap compares addresses, as a System.map says nothing of where it is from.
func (k *Kernel) checkSystemMap(f *debugfile.File) error {
	t, err := f.Symbols()
	if err != nil {
		return err
	}
	const every = 61
	checked := 0
	i := 0
	for s := range t.Slid(k.guest.KASLROffset).All() {
		if i++; i%every != 0 && s.Name != "linux_banner" {
			continue
		}
		have := k.guest.Symbols.LookupAll(s.Name)
		if len(have) == 0 {
			continue // of other kinds of symbols
		}
		if !slices.Contains(have, s.Addr) {
			return &MismatchError{
				File: f.Path, What: "address of " + s.Name,
				Guest: fmt.Sprintf("%#x", have[0]-k.guest.KASLROffset), Have: fmt.Sprintf("%#x", s.Addr-k.guest.KASLROffset),
			}
		}
		checked++
	}
	if checked < 10 {
		return &MismatchError{File: f.Path, What: "table of symbols", Guest: "another", Have: "one without the guest's names"}
	}
	return nil
}

// debugSymbols returns the symbols of the first file that has any.
func debugSymbols(files []*debugfile.File) *symbols.Table {
	for _, f := range files {
		if t, err := f.Symbols(); err == nil {
			return t
		}
	}
	return nil
}
