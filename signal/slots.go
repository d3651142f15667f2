package signal

import (
	"github.com/ovmigrate/ovmigrate/kernel"
)

// A forged wake-up is a small structure that the guest kernel links into its own
// lists, so it must lie where nobody else allocates, and stay untouched until the
// kernel has let go of it: reused too early it takes the guest down. The page that
// holds the vmcoreinfo text is allocated once at boot, never freed, and only its
// beginning is used (kernel/crash_core.c).

const (
	slotSize = 64
	maxSlots = 12
	// slotMargin is left for what a crashing kernel appends to the text.
	slotMargin = 64
	pageSize   = 4096
)

// slots is the forged wake-ups' memory in one guest. machine.mu guards it.
type slots struct {
	addrs []kernel.Addr
	busy  map[kernel.Addr]bool
}

// find computes the slots.
func (s *slots) find(k *kernel.Kernel) error {
	var words [2]uint64
	for i, name := range []string{"vmcoreinfo_data", "vmcoreinfo_size"} {
		a, err := k.Symbol(name)
		if err != nil {
			return unsupported("%w", err)
		}
		if words[i], err = k.ReadU64(a); err != nil {
			return unsupported("%w", err)
		}
	}
	page, used := kernel.Addr(words[0]), words[1]
	if !page.IsKernel() || page%pageSize != 0 || used == 0 || used > pageSize {
		return unsupported("vmcoreinfo at %s with %d bytes makes no sense", page, used)
	}
	s.busy = make(map[kernel.Addr]bool)
	for i := 1; i <= maxSlots && pageSize-i*slotSize >= int(used)+slotMargin; i++ {
		s.addrs = append(s.addrs, page+pageSize-kernel.Addr(i*slotSize))
	}
	if len(s.addrs) == 0 {
		return unsupported("the vmcoreinfo page is full")
	}
	return nil
}

// take returns a slot that is free: ours, and all zeros. What another program left
// there may still be linked. ok is false if there is none.
func (s *slots) take(k *kernel.Kernel) (slot kernel.Addr, ok bool, err error) {
	for _, a := range s.addrs {
		if s.busy[a] {
			continue
		}
		var b [slotSize]byte
		if _, err := k.ReadAt(b[:], a); err != nil {
			return 0, false, err
		}
		if b == ([slotSize]byte{}) {
			s.busy[a] = true
			return a, true, nil
		}
	}
	return 0, false, nil
}

// clear returns a slot that the kernel has let go of. The guest may be running.
func (s *slots) clear(k *kernel.Kernel, a kernel.Addr) error {
	var zero [8]byte
	for i := 0; i < slotSize; i += len(zero) {
		if _, err := k.WriteAt(zero[:], a.Add(i)); err != nil {
			return err // and the slot stays busy
		}
	}
	delete(s.busy, a)
	return nil
}

// adopt takes a slot that a program used that was killed.
func (s *slots) adopt(a kernel.Addr) {
	if s.busy == nil {
		s.busy = make(map[kernel.Addr]bool)
	}
	s.busy[a] = true
}

// untake returns a slot that was taken but never written.
func (s *slots) untake(a kernel.Addr) { delete(s.busy, a) }
