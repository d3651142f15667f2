package vmi

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Guard calls f and returns an error if f touched mapped memory that is no longer
// there, which would otherwise end the program: a file that shrank under a mapping
// raises SIGBUS. Code that reads a [Viewer]'s bytes of a file that others may
// truncate wraps its loop in Guard; ReadPhys and WritePhys do so themselves. Other
// panics of f pass through, as do faults on goroutines that f starts.
func Guard(f func()) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			fault, ok := r.(interface {
				runtime.Error
				Addr() uintptr
			})
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("mapped memory is gone: %w", fault)
		}
	}()
	f()
	return nil
}
