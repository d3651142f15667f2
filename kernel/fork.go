package kernel

// VforkChild returns the child that t waits for in vfork(2) or posix_spawn(3), nil if it
// waits for none: t sleeps until the child executes a program or exits, and only a
// fatal signal ends that sleep. In a guest that is not paused the child may just have
// done so. Source: kernel/fork.c:wait_for_vfork_done, whose completion is on t's stack.
func (t *Task) VforkChild() (*Task, error) {
	if t.State&TaskUninterruptible == 0 || !t.Stack.IsKernel() {
		return nil, nil
	}
	stack := t.stackRange()
	for c, err := range t.Children() {
		if err != nil {
			return nil, err
		}
		a, err := c.Attr()
		if err != nil {
			return nil, err
		}
		if a.VforkDone >= stack.start && a.VforkDone < stack.end {
			return c, nil
		}
	}
	return nil, nil
}
