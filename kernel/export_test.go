package kernel

// StackByDWARF is KernelStack by the debug file alone.
func StackByDWARF(t *Task) (*StackTrace, error) {
	code, err := t.k.code()
	if err != nil {
		return nil, err
	}
	u, err := t.k.newDWARFUnwinder(code)
	if err != nil {
		return nil, err
	}
	return t.stackBy(code, u)
}
