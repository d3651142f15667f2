package checkpoint

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// pipeData is what lies in a pipe.
type pipeData struct {
	entry *pipe_data.PipeDataEntry
	data  []byte
	fifo  bool
}

// pipeEnds counts the ends of one pipe: how many there are, and how many of them
// the process holds.
type pipeEnds struct {
	readers, writers     int
	ourReaders, ourWrite int
	id                   uint32
}

// pipe encodes one end of a pipe, and its contents once.
func (t *fileTable) pipe(id uint32, what string, f *kernel.File) error {
	if f.Flags&kernel.ODirect != 0 {
		t.c.issues.refuse(what, "is a pipe in packet mode (O_DIRECT), whose packets CRIU runs together")
	}
	pid, err := t.pipeContents(f, false)
	if err != nil {
		return err
	}
	owner, err := t.fown(f)
	if err != nil {
		return err
	}
	t.add(id, fdinfo.FdTypes_PIPE, &fdinfo.FileEntry{Pipe: &pipe.PipeEntry{
		Id: &id, PipeId: &pid, Flags: new(f.Flags &^ openOnly), Fown: owner,
	}})
	return nil
}

// fifo encodes a pipe that has a name.
func (t *fileTable) fifo(id uint32, what string, f *kernel.File) error {
	pid, err := t.pipeContents(f, true)
	if err != nil {
		return err
	}
	regKey := fileKey{file: f.Addr, mapped: true}
	reg := t.newID(regKey)
	e, err := t.regEntry(reg, what, f, false)
	if err != nil || e == nil {
		return err
	}
	t.add(reg, fdinfo.FdTypes_REG, &fdinfo.FileEntry{Reg: e})
	t.add(id, fdinfo.FdTypes_FIFO, &fdinfo.FileEntry{Fifo: &fifo.FifoEntry{Id: &id, PipeId: &pid, RegfId: &reg}})
	return nil
}

func (t *fileTable) pipeContents(f *kernel.File, named bool) (id uint32, err error) {
	p, err := f.Pipe()
	if err != nil {
		return 0, err
	}
	// CRIU names pipes by 32 bits of the inode number.
	id = uint32(f.Inode.Ino)
	ends := t.ends[id]
	ends.id, ends.readers, ends.writers = id, int(p.Readers), int(p.Writers)
	if f.Mode&kernel.FModeRead != 0 {
		ends.ourReaders++
	}
	if f.Mode&kernel.FModeWrite != 0 {
		ends.ourWrite++
	}
	if !named {
		t.ends[id] = ends
	}
	if t.pipeIDs[id] {
		return id, nil
	}
	t.pipeIDs[id] = true
	data, err := p.Data(p.Capacity())
	if err != nil {
		return 0, fmt.Errorf("contents of pipe:[%d]: %w", id, err)
	}
	t.pipes = append(t.pipes, pipeData{
		entry: &pipe_data.PipeDataEntry{PipeId: &id, Bytes: new(uint32(len(data))), Size: new(uint32(p.Capacity()))},
		data:  data, fifo: named,
	})
	return id, nil
}

// reportPipes tells which pipes lead out of the process: their other end is
// connected anew by --inherit-fd, or else closed.
func (t *fileTable) reportPipes() {
	for _, e := range t.ends {
		if e.readers <= e.ourReaders && e.writers <= e.ourWrite {
			continue
		}
		key := fmt.Sprintf("pipe:[%d]", e.id)
		t.c.external = append(t.c.external, key)
		t.c.issues.approximate(key, "has another process at its other end: restore with --inherit-fd fd[N]:%s, or it is closed", key)
	}
}
