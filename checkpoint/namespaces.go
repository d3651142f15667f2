package checkpoint

// namespaces refuses a process that does not live in the guest's first namespaces:
// what a namespace holds is not carried yet.
func (c *collector) namespaces() error {
	ns, err := c.leader.Namespaces()
	if err != nil {
		return err
	}
	for _, n := range ns.All {
		init, err := ns.IsInit(n.Kind)
		if err != nil {
			return err
		}
		if !init {
			c.issues.refuse(n.Kind+" namespace", "is %s, not the guest's first", n)
		}
	}
	return nil
}
