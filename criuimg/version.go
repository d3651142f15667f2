package criuimg

import (
	"fmt"
	"strconv"
	"strings"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// VersionHint is one thing in a set that tells which CRIU knows it.
type VersionHint struct {
	Since string // first CRIU release that has it, such as "3.18"
	File  string
	What  string
	// Needed is set if older releases misread the set; otherwise they only lose
	// what the hint names.
	Needed bool
}

// Version returns what dates the set, in no special order, and from that the
// oldest release that can have written it and the oldest that can restore it;
// "2.0" if nothing tells. Images do not name their writer.
func (s *Set) Version() (writer, reader string, hints []VersionHint) {
	add := func(cond bool, since, file, what string, needed bool) {
		if cond {
			hints = append(hints, VersionHint{since, file, what, needed})
		}
	}
	inv, name := s.inv, Inventory.FileName(0)
	add(inv.NetworkLockMethod != nil, "3.16", name, "network_lock_method", false)
	add(inv.PluginsEntry != nil, "4.1", name, "plugins_entry", false)
	add(inv.DumpCriuRunId != nil, "4.1", name, "dump_criu_run_id", false)
	add(inv.AllowUprobes != nil, "4.2", name, "allow_uprobes", false)
	for _, key := range s.Keys(Core) {
		c, err := s.Core(uint32(key))
		if err != nil {
			continue
		}
		name := Core.FileName(key)
		coreHints(c, func(cond bool, since, what string) { add(cond, since, name, what, false) })
	}
	for _, key := range s.Keys(MM) {
		m, err := s.MM(uint32(key))
		if err != nil {
			continue
		}
		for i, a := range m.GetVmas() {
			add(a.GetStatus()&(VMAGuard|VMAUprobes) != 0, "4.2", MM.FileName(key), fmt.Sprintf("status %#x of VMA %d", a.GetStatus(), i), true)
		}
	}
	if files, err := s.Files(); err == nil {
		for _, f := range files {
			add(f.GetType() == fdinfo.FdTypes_PIDFD, "4.1", Files.FileName(0), fmt.Sprintf("file %d is a PIDFD", f.GetId()), true)
		}
	}
	for _, f := range s.images {
		if f.Kind == Pagemap || f.Kind == PagemapShmem {
			since, what, needed := s.pagemapAge(f)
			add(since != "", since, f.Name, what, needed)
		}
	}
	writer, reader = "2.0", "2.0"
	for _, h := range hints {
		if versionLess(writer, h.Since) {
			writer = h.Since
		}
		if h.Needed && versionLess(reader, h.Since) {
			reader = h.Since
		}
	}
	return writer, reader, hints
}

func coreHints(c *criu_core.CoreEntry, add func(cond bool, since, what string)) {
	tc := c.GetThreadCore()
	add(tc.GetRseqEntry() != nil, "3.17", "rseq_entry")
	add(tc != nil && tc.CgSet != nil, "3.18", "thread_core.cg_set")
	add(c.GetTc() != nil && c.Tc.StopSigno != nil, "3.18", "stop_signo")
	add(tc.GetCreds() != nil && tc.Creds.NoNewPrivs != nil, "3.19", "no_new_privs")
	add(c.GetTc() != nil && c.Tc.MembarrierRegistrationMask != nil, "3.19", "membarrier_registration_mask")
	add(len(tc.GetCreds().GetCapAmb()) > 0, "4.1", "cap_amb")
}

// pagemapAge looks at the field in which pages are counted: CRIU 4.2 uses a new
// one and writes 0 in the old; this package writes both.
func (s *Set) pagemapAge(f ImageFile) (since, what string, needed bool) {
	r, err := s.Image(f.Kind, f.Key)
	if err != nil {
		return "", "", false
	}
	defer r.Close()
	for {
		m, err := r.Next()
		if err != nil {
			return "", "", false
		}
		if e, ok := m.(*pagemap.PagemapEntry); ok && e.NrPages != nil && e.GetCompatNrPages() == 0 {
			return "4.2", "nr_pages in field 5 only", true
		}
	}
}

// versionLess compares dotted versions by number.
func versionLess(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(x) && i < len(y); i++ {
		m, _ := strconv.Atoi(x[i])
		n, _ := strconv.Atoi(y[i])
		if m != n {
			return m < n
		}
	}
	return len(x) < len(y)
}
