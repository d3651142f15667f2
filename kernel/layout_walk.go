package kernel

import "iter"

// List yields the structures that are linked in the list whose head lies at head.
// member is the C path of their list_head; names that differ between kernels are
// separated by "|". A structure that cannot be read is yielded as its error, and the
// walk goes on; a broken link ends it. A T that must know where it lies has a field
//
//	Addr kernel.Addr `k:"&"`
//
// Source: include/linux/list.h:list_for_each_entry.
func (l *Layout[T]) List(k *Kernel, head Addr, member string) iter.Seq2[T, error] {
	return l.entries(k, k.List(head), member)
}

// HList is List for the hlist_head at head.
func (l *Layout[T]) HList(k *Kernel, head Addr, member string) iter.Seq2[T, error] {
	return l.entries(k, k.HList(head), member)
}

// RBTree is List for the rb_root or rb_root_cached at root, in order.
func (l *Layout[T]) RBTree(k *Kernel, root Addr, member string) iter.Seq2[T, error] {
	return l.entries(k, k.RBTree(root), member)
}

func (l *Layout[T]) entries(k *Kernel, nodes iter.Seq2[Addr, error], member string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		p := l.plan(k)
		if p.err != nil {
			yield(zero, p.err)
			return
		}
		off, err := k.offsetOf(p.cname, member)
		if err != nil {
			yield(zero, err)
			return
		}
		for node, err := range nodes {
			if err != nil {
				yield(zero, err)
				return
			}
			if !yield(l.Load(k, node-Addr(off))) {
				return
			}
		}
	}
}
