package kernel

import "iter"

// maxWalk bounds every walk over linked kernel objects. The largest honest list,
// all processes of a machine, has at most 4 million entries (PID_MAX_LIMIT).
const maxWalk = 4 << 20

// List walks a circular list_head and yields the address of each entry's node
// (not of the structure around it: use ContainerOf, or subtract the offset). A
// broken link or a loop that misses the head yields an error and ends the walk.
// Source: include/linux/list.h:list_for_each.
func (k *Kernel) List(head Addr) iter.Seq2[Addr, error] {
	return k.chain(head, head)
}

// HList walks a hlist_head and yields the address of each node. It also serves
// hlist_nulls, whose end marker is an odd value. Source:
// include/linux/list.h:hlist_for_each.
func (k *Kernel) HList(head Addr) iter.Seq2[Addr, error] {
	return k.chain(head, 0)
}

// chain follows the pointer at from, then the pointer at what that points to, and
// so on up to end.
func (k *Kernel) chain(from, end Addr) iter.Seq2[Addr, error] {
	return func(yield func(Addr, error) bool) {
		var loop loopCheck
		node := from
		for range maxWalk {
			next, err := k.ReadAddr(node)
			if err != nil {
				yield(0, &PathError{Path: "list", Addr: node, Err: err})
				return
			}
			if next == end || end == 0 && next&1 != 0 {
				return
			}
			if !next.IsKernel() || next&7 != 0 {
				yield(0, corrupt(node, "list", "next is %s", next))
				return
			}
			if loop.seen(next) {
				break
			}
			if !yield(next, nil) {
				return
			}
			node = next
		}
		yield(0, &PathError{Path: "list", Addr: from, Err: ErrLimit})
	}
}

// loopCheck finds a cycle in a chain by Brent's method: constant memory, and at
// most three times the length of tail and cycle in steps.
type loopCheck struct {
	mark        Addr
	steps, next int
}

func (c *loopCheck) seen(a Addr) bool {
	if c.mark == a {
		return true
	}
	if c.steps++; c.steps >= c.next {
		c.mark, c.next = a, max(2*c.next, 8)
		c.steps = 0
	}
	return false
}

// ContainerOf returns the address of the C structure whose member lies at a.
// Source: include/linux/container_of.h.
func (k *Kernel) ContainerOf(a Addr, cname, member string) (Addr, error) {
	off, err := k.offsetOf(cname, member)
	if err != nil {
		return 0, err
	}
	return a - Addr(off), nil
}
