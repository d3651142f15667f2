package checkpoint

import (
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// capWords splits a capability set into the two words that CRIU 3.17.1 insists on.
func capWords(set kernel.Caps) []uint32 { w := set.Words(); return w[:] }

func (c *collector) creds(t *kernel.Task, a *kernel.TaskAttr) (*creds.CredsEntry, error) {
	cr, err := t.Cred()
	if err != nil {
		return nil, err
	}
	e := &creds.CredsEntry{
		Uid: &cr.UID, Gid: &cr.GID, Euid: &cr.EUID, Egid: &cr.EGID,
		Suid: &cr.SUID, Sgid: &cr.SGID, Fsuid: &cr.FSUID, Fsgid: &cr.FSGID,
		CapInh: capWords(cr.CapInheritable), CapPrm: capWords(cr.CapPermitted),
		CapEff: capWords(cr.CapEffective), CapBnd: capWords(cr.CapBounding), CapAmb: capWords(cr.CapAmbient),
		Secbits: &cr.SecureBits, Groups: cr.Groups,
	}
	if a.NoNewPrivs() {
		e.NoNewPrivs = new(uint32(1))
	}
	return e, nil
}
