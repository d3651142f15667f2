package kernel

type fsTypeOwner struct {
	Owner Addr `k:"owner"`    // 0 if it is not in a module
	Next  Addr `k:"next,opt"` // a list of another kind in 7.2, which has symbols of variables
}

var fsTypeOwnerLayout = LayoutOf[fsTypeOwner]("file_system_type")

// maxFSTypes is far above the number of kinds of file systems that are registered.
const maxFSTypes = 1 << 10

// moduleList returns the head of the list of modules. Source:
// kernel/module/main.c:modules.
func (k *Kernel) moduleList() (Addr, error) {
	a, err := k.Symbol("modules")
	if err == nil {
		return a, nil
	}
	return k.searchModules(err)
}

// searchModules finds the list of modules of a kernel without symbols of variables:
// one of them has a file system. missing is the error if there is none.
func (k *Kernel) searchModules(missing error) (Addr, error) {
	if a, ok := k.lazy.modules.Load().(Addr); ok {
		return a, nil
	}
	off, err := k.offsetOf("module", "list")
	if err != nil {
		return 0, err
	}
	m, err := k.moduleOfFileSystem()
	if err != nil {
		return 0, err
	}
	if m == 0 {
		return 0, missing
	}
	head, err := k.headOf(m.Add(off), missing)
	if err == nil {
		k.lazy.modules.Store(head)
	}
	return head, err
}

// moduleOfFileSystem returns a module that has registered a file system, 0 if none
// has. Source: fs/filesystems.c:file_systems.
func (k *Kernel) moduleOfFileSystem() (Addr, error) {
	a, err := k.Symbol("init_task")
	if err != nil {
		return 0, err
	}
	swapper, err := k.TaskAt(a)
	if err != nil {
		return 0, err
	}
	ns, err := swapper.Namespaces()
	if err != nil {
		return 0, err
	}
	seen := map[Addr]bool{}
	for m, err := range k.Mounts(ns.Get("mnt").Addr) {
		if err != nil {
			return 0, err
		}
		sb, err := m.SuperBlock()
		if err != nil {
			return 0, err
		}
		for next := sb.FSType; next != 0 && !seen[next] && len(seen) < maxFSTypes; {
			seen[next] = true
			t, err := fsTypeOwnerLayout.Load(k, next)
			if err != nil {
				return 0, err
			}
			if t.Owner != 0 {
				return t.Owner, nil
			}
			next = t.Next
		}
	}
	return 0, nil
}
