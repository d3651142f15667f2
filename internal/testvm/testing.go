package testvm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// bootTime bounds booting in tests. It takes about 5 s on a machine of its own.
const bootTime = 6 * time.Minute

// Start boots a guest for one test, which ends it. The test fails if the guest does
// not boot, which includes an image that has not been built; with -short it is
// skipped. When the test fails, the end of the guest's console is logged.
func Start(tb testing.TB, c Config) *VM {
	tb.Helper()
	if testing.Short() {
		tb.Skip("boots a guest; -short is set")
	}
	ctx, cancel := context.WithTimeout(tb.Context(), bootTime)
	defer cancel()
	vm, err := Boot(ctx, c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		vm.logFailure(tb)
		if err := vm.Stop(); err != nil {
			tb.Errorf("stop guest: %v", err)
		}
	})
	return vm
}

type shared struct {
	sync.Mutex
	vm *VM
}

var sharedVMs sync.Map // config key → *shared

// StartShared returns a guest that all tests of this test binary with the same
// configuration share: it is booted by the first, and once more if it has died since.
// It ends with the process. Tests should leave behind nothing that matters to others.
func StartShared(tb testing.TB, c Config) *VM {
	tb.Helper()
	if testing.Short() {
		tb.Skip("boots a guest; -short is set")
	}
	v, _ := sharedVMs.LoadOrStore(c.key(), &shared{})
	s := v.(*shared)
	s.Lock()
	defer s.Unlock()
	if s.vm != nil && s.vm.dead() {
		_ = s.vm.Stop()
		s.vm = nil
	}
	if s.vm == nil {
		// Not the test's context: the guest lives on.
		ctx, cancel := context.WithTimeout(context.Background(), bootTime)
		defer cancel()
		vm, err := Boot(ctx, c)
		if err != nil {
			tb.Fatal(err)
		}
		s.vm = vm
	}
	vm := s.vm
	tb.Cleanup(func() { vm.logFailure(tb) })
	return vm
}

func (vm *VM) dead() bool {
	select {
	case <-vm.qemu.exited:
		return true
	case <-vm.client.Done():
		return true
	default:
		return false
	}
}

func (vm *VM) logFailure(tb testing.TB) {
	if tb.Failed() {
		tb.Logf("guest %s, end of its console:\n%s", vm.config.name(), vm.consoleTail(40))
	}
}

// CheckKernel fails the test if the guest's kernel has complained; see Warnings.
func (vm *VM) CheckKernel(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	lines, err := vm.Warnings(ctx)
	if err != nil {
		tb.Errorf("guest's kernel log: %v", err)
	}
	for _, l := range lines {
		tb.Errorf("guest's kernel: %s", l)
	}
}

// Wait calls ready every few milliseconds until it returns true, an error, or ctx
// ends. what completes "waiting for ...".
func Wait(ctx context.Context, what string, ready func() (bool, error)) error {
	for {
		ok, err := ready()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// IsNoImage says whether an error means that the guest's image is not built.
func IsNoImage(err error) bool { return errors.Is(err, ErrNoImage) }
