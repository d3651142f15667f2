package signal

import (
	"errors"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Errors to test for with errors.Is. The first five come in a *RefusedError: the
// guest was not touched.
var (
	ErrKernelThread = errors.New("is a kernel thread")
	ErrExited       = errors.New("has exited or is exiting")
	ErrInit         = errors.New("is the guest's init, without which its kernel panics")
	ErrTraced       = errors.New("is traced by a debugger")
	ErrBadSignal    = errors.New("no such signal")

	// ErrReadOnly: the memory source cannot write.
	ErrReadOnly = errors.New("this memory source is read-only")
	// ErrNoPause: the memory source cannot stop the virtual machine, without
	// which kernel data cannot be changed consistently.
	ErrNoPause = errors.New("this memory source cannot pause the guest: open it as qmp:SOCKET")
	// ErrNotRunning: the virtual machine stands still, so nothing can take effect.
	ErrNotRunning = errors.New("the virtual machine is not running")
	// ErrUnsupported: the guest's kernel lacks what the strategy needs.
	ErrUnsupported = errors.New("not possible with this guest kernel")
	// ErrBusy: a lock or a structure of the guest was in use whenever we looked.
	ErrBusy = errors.New("guest kernel data stayed in use")
	// ErrTimeout: the effect was not seen in time.
	ErrTimeout = errors.New("no effect seen in time")
)

// RefusedError says why a process is left alone.
type RefusedError struct {
	PID  kernel.PID
	Comm string
	Err  error // ErrKernelThread, ErrExited, ErrInit, ErrTraced or ErrBadSignal
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("pid %d (%s) %v", e.PID, e.Comm, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// TimeoutError says that what was asked of a process had not happened after the
// time given, and what is left of the attempt. It is ErrTimeout; if the context
// ended the wait, it is the context's error too.
type TimeoutError struct {
	PID   kernel.PID
	Set   string        // what the processes are, if more than one was acted upon
	What  string        // what was waited for
	After time.Duration // how long
	State string        // what was seen last
	Left  string        // what stays behind in the guest, "" for nothing
	Err   error         // the context's error, or nil
}

func (e *TimeoutError) Error() string {
	who := e.Set
	if who == "" {
		who = fmt.Sprintf("pid %d", e.PID)
	}
	s := fmt.Sprintf("%s: %s: no effect within %v", who, e.What, e.After.Round(time.Millisecond))
	if e.State != "" {
		s += ": " + e.State
	}
	if e.Left != "" {
		s += "; " + e.Left
	}
	return s
}

// Is makes the error an ErrTimeout.
func (e *TimeoutError) Is(target error) bool { return target == ErrTimeout }

func (e *TimeoutError) Unwrap() error { return e.Err }

// retryError asks for another pause a little later. It never reaches a caller.
type retryError struct{ what string }

func (e *retryError) Error() string { return e.what }

func retry(format string, args ...any) error { return &retryError{fmt.Sprintf(format, args...)} }
