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
