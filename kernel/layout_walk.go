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
	return l.each(k, l.core.list(k, head, member))
}

// HList is List for the hlist_head at head.
func (l *Layout[T]) HList(k *Kernel, head Addr, member string) iter.Seq2[T, error] {
	return l.each(k, l.core.hlist(k, head, member))
}

// RBTree is List for the rb_root or rb_root_cached at root, in order.
func (l *Layout[T]) RBTree(k *Kernel, root Addr, member string) iter.Seq2[T, error] {
	return l.each(k, l.core.rbtree(k, root, member))
}

// each loads the structures at those addresses. Like what follows it is not inlined into
// each of hundreds of instances: that made compiling this package take five times as long.
//
//go:noinline
func (l *Layout[T]) each(k *Kernel, addrs iter.Seq2[Addr, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		addrs(func(a Addr, err error) bool {
			var t T
			if err == nil {
				err = l.LoadInto(k, a, &t)
			}
			return yield(t, err)
		})
	}
}

//go:noinline
func (l *layoutCore) list(k *Kernel, head Addr, member string) iter.Seq2[Addr, error] {
	return l.entries(k, k.List(head), member)
}

//go:noinline
func (l *layoutCore) hlist(k *Kernel, head Addr, member string) iter.Seq2[Addr, error] {
	return l.entries(k, k.HList(head), member)
}

//go:noinline
func (l *layoutCore) rbtree(k *Kernel, root Addr, member string) iter.Seq2[Addr, error] {
	return l.entries(k, k.RBTree(root), member)
}

// entries yields the addresses of the structures whose member lies at a node.
func (l *layoutCore) entries(k *Kernel, nodes iter.Seq2[Addr, error], member string) iter.Seq2[Addr, error] {
	return func(yield func(Addr, error) bool) {
		p := l.plan(k)
		if p.err != nil {
			yield(0, p.err)
			return
		}
		off, err := k.offsetOf(p.cname, member)
		if err != nil {
			yield(0, err)
			return
		}
		for node, err := range nodes {
			if err != nil {
				yield(0, err)
				return
			}
			if !yield(node-Addr(off), nil) {
				return
			}
		}
	}
}
