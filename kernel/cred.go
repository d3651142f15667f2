package kernel

// Caps is a set of capabilities, bit CAP_* of include/uapi/linux/capability.h.
type Caps uint64

// Words returns the set as two 32-bit words, low first, as CRIU writes it.
func (c Caps) Words() [2]uint32 { return [2]uint32{uint32(c), uint32(c >> 32)} }

// Cred is a set of credentials. All ids are those of the initial user namespace;
// UserNS maps them.
type Cred struct {
	k    *Kernel
	Addr Addr // of the cred
	credFields
	Groups []uint32 // supplementary, in the kernel's order
}

type credFields struct {
	UID            uint32 `k:"uid"`
	GID            uint32 `k:"gid"`
	SUID           uint32 `k:"suid"`
	SGID           uint32 `k:"sgid"`
	EUID           uint32 `k:"euid"`
	EGID           uint32 `k:"egid"`
	FSUID          uint32 `k:"fsuid"`
	FSGID          uint32 `k:"fsgid"`
	SecureBits     uint32 `k:"securebits"`
	CapInheritable Caps   `k:"cap_inheritable"` // two words up to 6.2, one since
	CapPermitted   Caps   `k:"cap_permitted"`
	CapEffective   Caps   `k:"cap_effective"`
	CapBounding    Caps   `k:"cap_bset"`
	CapAmbient     Caps   `k:"cap_ambient"`
	UserNSAddr     Addr   `k:"user_ns"`
	GroupInfo      Addr   `k:"group_info"`
	SessionKeyring Addr   `k:"session_keyring,opt"`
	ProcessKeyring Addr   `k:"process_keyring,opt"`
	ThreadKeyring  Addr   `k:"thread_keyring,opt"`
	Security       Addr   `k:"security,opt"`
}

type groupInfo struct {
	N   int32 `k:"ngroups"`
	GID Addr  `k:"&gid"`
}

type taskCred struct {
	Cred Addr `k:"cred"`
}

var (
	credLayout      = LayoutOf[credFields]("cred")
	groupInfoLayout = LayoutOf[groupInfo]("group_info")
	taskCredLayout  = LayoutOf[taskCred]("task_struct")
)

const maxGroups = 65536 // NGROUPS_MAX

// Cred returns the credentials that others see t by, as /proc/PID/status shows
// them. Source: include/linux/cred.h:__task_cred.
func (t *Task) Cred() (*Cred, error) { return t.k.CredAt(t.RealCred) }

// SubjectiveCred returns the credentials that t acts with. They differ from Cred
// only while the kernel acts for it under an assumed identity (override_creds).
func (t *Task) SubjectiveCred() (*Cred, error) {
	c, err := taskCredLayout.Load(t.k, t.Addr)
	if err != nil {
		return nil, err
	}
	return t.k.CredAt(c.Cred)
}

// CredAt reads the cred at a. Errors: *PathError, ErrCorrupt.
func (k *Kernel) CredAt(a Addr) (*Cred, error) {
	c := &Cred{k: k, Addr: a}
	if err := credLayout.LoadInto(k, a, &c.credFields); err != nil {
		return nil, err
	}
	g, err := groupInfoLayout.Load(k, c.GroupInfo)
	if err != nil {
		return nil, err
	}
	if g.N < 0 || g.N > maxGroups {
		return nil, corrupt(c.GroupInfo, "group_info", "%d groups", g.N)
	}
	b, err := k.bytesAt(g.GID, 4*int(g.N), nil)
	if err != nil {
		return nil, &PathError{Path: "group_info", Addr: c.GroupInfo, Err: err}
	}
	for i := range int(g.N) {
		c.Groups = append(c.Groups, uint32(loadLE(b[4*i:4*i+4])))
	}
	return c, nil
}

// UserNS returns the user namespace that the credentials count in.
func (c *Cred) UserNS() (*UserNS, error) { return c.k.UserNSAt(c.UserNSAddr) }
