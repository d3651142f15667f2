package kernel

// A kernel that is built without symbols of variables (CONFIG_KALLSYMS_ALL: Debian's
// arm64 before 6.12) has those of functions, those that it exports and those in its
// VMCOREINFO. Heads of lists are found from what is in them.

// inImage says whether a lies in the kernel image.
func (k *Kernel) inImage(a Addr) bool {
	image := k.linear[len(k.linear)-1]
	return a >= image.start && a < image.end
}

// headOf returns the head of the circular list that node is in, for lists whose head
// is a variable and whose other nodes are allocated; node itself may be a variable,
// too. missing is the error if the list has no such node.
func (k *Kernel) headOf(node Addr, missing error) (Addr, error) {
	for a, err := range k.List(node) {
		if err != nil {
			return 0, err
		}
		if k.inImage(a) {
			return a, nil
		}
	}
	return 0, missing
}

// listHead returns the variable that is the head of a list: the symbol, or found from
// the node in a variable that the kernel exports.
func (k *Kernel) listHead(symbol string, variable Addr, cname, member string) (Addr, error) {
	a, missing := k.Symbol(symbol)
	if missing == nil || variable == 0 {
		return a, missing
	}
	off, err := k.offsetOf(cname, member)
	if err != nil {
		return 0, err
	}
	return k.headOf(variable.Add(off), missing)
}
