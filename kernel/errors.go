package kernel

import (
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// Errors to test for with errors.Is.
var (
	// ErrNoType: the guest's type information lacks a type or member.
	ErrNoType = types.ErrNoType
	// ErrNoSymbol: the guest's kernel has no symbol of that name.
	ErrNoSymbol = errors.New("no such symbol")
	// ErrCorrupt: a structure in guest memory contradicts itself, or changed
	// while it was read.
	ErrCorrupt = errors.New("kernel data makes no sense")
	// ErrNoTask: no task has that pid.
	ErrNoTask = errors.New("no such process")
	// ErrNoMM: the task has no user memory: a kernel thread, or one that exited.
	ErrNoMM = errors.New("has no user memory")
	// ErrLimit: a walk was given up after more steps than any sane structure has.
	ErrLimit = errors.New("too many entries, or a loop")
	// ErrArch: the guest's architecture has no such thing, or it is not read there.
	ErrArch = errors.New("not on this architecture")
	// ErrLocked: the data are being changed by somebody who has their lock.
	ErrLocked = errors.New("locked")
	// ErrNil: a null pointer was followed.
	ErrNil = errors.New("null pointer")
)

// PathError is a failed access to a kernel object. Path is the way there as C
// writes it, for example "task_struct(0xffff888003c40000).mm->pgd".
type PathError struct {
	Path string
	Addr Addr
	Err  error
}

func (e *PathError) Error() string {
	if e.Addr == 0 {
		return e.Path + ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s at %s: %v", e.Path, e.Addr, e.Err)
}

func (e *PathError) Unwrap() error { return e.Err }

// corrupt returns a PathError that wraps ErrCorrupt.
func corrupt(a Addr, path, format string, args ...any) error {
	return &PathError{Path: path, Addr: a, Err: fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))}
}
