package kernel

// rbChecked is a node of a red-black tree that is known to be one.
type rbChecked struct{ node, left, right Addr }

type rbWhole struct {
	ParentColor uint64 `k:"__rb_parent_color"` // the parent's address; bit 0 is set for black
	Right       Addr   `k:"rb_right"`
	Left        Addr   `k:"rb_left"`
}

type rbRootCached struct {
	Node     Addr `k:"rb_root.rb_node"`
	Leftmost Addr `k:"rb_leftmost"`
}

var (
	rbWholeLayout      = LayoutOf[rbWhole]("rb_node")
	rbRootCachedLayout = LayoutOf[rbRootCached]("rb_root_cached")
)

// rbCheck goes through a red-black tree in order.
type rbCheck struct {
	k     *Kernel
	root  Addr
	nodes []rbChecked
}

// checkRBTree returns the nodes of the tree of an rb_root_cached in order. The error
// says why it is no red-black tree: a node that its parent does not know, a red one
// with a red child, paths with more black nodes than others, a wrong leftmost node.
// Source: lib/rbtree.c.
func (k *Kernel) checkRBTree(root Addr) ([]rbChecked, error) {
	r, err := rbRootCachedLayout.Load(k, root)
	if err != nil {
		return nil, err
	}
	c := &rbCheck{k: k, root: root}
	if _, err := c.visit(r.Node, 0, true, 0); err != nil {
		return nil, err
	}
	var first Addr
	if len(c.nodes) > 0 {
		first = c.nodes[0].node
	}
	if r.Leftmost != first {
		return nil, corrupt(root, "rb_root_cached", "leftmost is %s, the first is %s", r.Leftmost, first)
	}
	return c.nodes, nil
}

// visit returns how many black nodes each path down from node has. A node is entered
// once only, as it has one parent.
func (c *rbCheck) visit(node, parent Addr, red bool, depth int) (black int, err error) {
	if node == 0 {
		return 0, nil
	}
	if depth > rbDepth || len(c.nodes) >= maxWalk || !node.IsKernel() || node&7 != 0 {
		return 0, &PathError{Path: "rb_root", Addr: c.root, Err: ErrLimit}
	}
	n, err := rbWholeLayout.Load(c.k, node)
	if err != nil {
		return 0, err
	}
	if n.Left == n.Right && n.Left != 0 {
		return 0, corrupt(node, "rb_node", "%s is to the left and to the right", n.Left)
	}
	isRed := n.ParentColor&1 == 0
	if p := Addr(n.ParentColor &^ 3); p != parent {
		return 0, corrupt(node, "rb_node", "its parent is %s, it says %s", parent, p)
	}
	if red && isRed {
		return 0, corrupt(node, "rb_node", "red, as its parent, or as the root")
	}
	left, err := c.visit(n.Left, node, isRed, depth+1)
	if err != nil {
		return 0, err
	}
	c.nodes = append(c.nodes, rbChecked{node, n.Left, n.Right})
	right, err := c.visit(n.Right, node, isRed, depth+1)
	if err != nil {
		return 0, err
	}
	if left != right {
		return 0, corrupt(node, "rb_node", "%d black nodes to the left, %d to the right", left, right)
	}
	if !isRed {
		left++
	}
	return left, nil
}
