package kernel

import "iter"

// rbDepth is more than twice the height of a red-black tree with maxWalk nodes.
const rbDepth = 64

type rbNode struct {
	Right Addr `k:"rb_right"`
	Left  Addr `k:"rb_left"`
}

var rbNodeLayout = LayoutOf[rbNode]("rb_node")

// RBTree walks a red-black tree in order, given the address of its rb_root (or of
// an rb_root_cached, which begins with one), and yields the address of each
// rb_node. Source: lib/rbtree.c:rb_next.
func (k *Kernel) RBTree(root Addr) iter.Seq2[Addr, error] {
	return func(yield func(Addr, error) bool) {
		node, err := k.ReadAddr(root)
		if err != nil {
			yield(0, &PathError{Path: "rb_root", Addr: root, Err: err})
			return
		}
		var stack []Addr
		steps := 0
		for node != 0 || len(stack) > 0 {
			for node != 0 {
				if steps++; len(stack) >= rbDepth || steps > maxWalk || !node.IsKernel() {
					yield(0, &PathError{Path: "rb_root", Addr: root, Err: ErrLimit})
					return
				}
				stack = append(stack, node)
				n, err := rbNodeLayout.Load(k, node)
				if err != nil {
					yield(0, err)
					return
				}
				node = n.Left
			}
			top := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if !yield(top, nil) {
				return
			}
			n, err := rbNodeLayout.Load(k, top)
			if err != nil {
				yield(0, err)
				return
			}
			node = n.Right
		}
	}
}
