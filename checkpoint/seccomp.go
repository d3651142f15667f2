package checkpoint

import (
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// seccompLog is SECCOMP_FILTER_FLAG_LOG.
const seccompLog = 2

// seccomp encodes a thread's system call filters. CRIU wants the newest first, each
// pointing to the next newer, and the thread to name its oldest. Source:
// criu/seccomp.c:dump_seccomp_filters.
func (c *collector) seccomp(t *kernel.Task, tc *criu_core.ThreadCoreEntry) error {
	s, err := t.Seccomp()
	if err != nil {
		return err
	}
	tc.SeccompMode = criu_core.SeccompMode(s.Mode).Enum()
	if s.Mode != kernel.SeccompFilter {
		return nil
	}
	if len(s.Filters) == 0 {
		c.issues.refuse(thread(t), "filters system calls, but has no filters to be found")
		return nil
	}
	if c.out.seccomp == nil {
		c.out.seccomp = &seccomp.SeccompEntry{}
	}
	newest := s.Filters[0].Addr
	if oldest, ok := c.filters[newest]; ok { // shared with a thread before
		tc.SeccompFilter = &oldest
		return nil
	}
	all := &c.out.seccomp.SeccompFilters
	for i, f := range s.Filters {
		switch {
		case f.Notify:
			c.issues.refuse(thread(t), "has system calls answered by a supervisor (seccomp user notification)")
		case f.BPF == nil:
			c.issues.refuse(thread(t), "has a system call filter of which the kernel kept no copy")
		}
		e := &seccomp.SeccompFilter{Filter: f.BPF}
		if f.Log {
			e.Flags = new(uint32(seccompLog))
		}
		if i > 0 {
			e.Prev = new(uint32(len(*all) - 1))
		}
		*all = append(*all, e)
	}
	oldest := uint32(len(*all) - 1)
	c.filters[newest] = oldest
	tc.SeccompFilter = &oldest
	return nil
}
