package kernel

// UserNS is a user namespace.
type UserNS struct {
	Addr         Addr // of the user_namespace
	Inum         uint32
	Parent       Addr // 0 for the initial one
	Level        int
	Owner, Group uint32 // ids of the creator in the initial namespace
	UIDMap       []IDExtent
	GIDMap       []IDExtent
}

// IDExtent maps Count ids from First on in a user namespace to ids from Lower on
// in the initial one. Source: struct uid_gid_extent.
type IDExtent struct{ First, Lower, Count uint32 }

type userNamespace struct {
	Inum       uint32 `k:"ns.inum"`
	Parent     Addr   `k:"parent"`
	Level      int32  `k:"level"`
	Owner      uint32 `k:"owner"`
	Group      uint32 `k:"group"`
	UIDCount   uint32 `k:"uid_map.nr_extents"`
	UIDExtent  Addr   `k:"&uid_map.extent"`
	UIDForward Addr   `k:"uid_map.forward"`
	GIDCount   uint32 `k:"gid_map.nr_extents"`
	GIDExtent  Addr   `k:"&gid_map.extent"`
	GIDForward Addr   `k:"gid_map.forward"`
}

type idExtent struct {
	First uint32 `k:"first"`
	Lower uint32 `k:"lower_first"`
	Count uint32 `k:"count"`
}

var (
	userNSLayout   = LayoutOf[userNamespace]("user_namespace")
	idExtentLayout = LayoutOf[idExtent]("uid_gid_extent")
)

const (
	baseIDExtents = 5   // UID_GID_MAP_MAX_BASE_EXTENTS: more are kept outside
	maxIDExtents  = 340 // UID_GID_MAP_MAX_EXTENTS
)

// UserNSAt reads the user_namespace at a. Errors: *PathError, ErrCorrupt.
func (k *Kernel) UserNSAt(a Addr) (*UserNS, error) {
	raw, err := userNSLayout.Load(k, a)
	if err != nil {
		return nil, err
	}
	ns := &UserNS{Addr: a, Inum: raw.Inum, Parent: raw.Parent, Level: int(raw.Level), Owner: raw.Owner, Group: raw.Group}
	if ns.UIDMap, err = k.idMap(raw.UIDCount, raw.UIDExtent, raw.UIDForward); err != nil {
		return nil, err
	}
	ns.GIDMap, err = k.idMap(raw.GIDCount, raw.GIDExtent, raw.GIDForward)
	return ns, err
}

func (k *Kernel) idMap(n uint32, inline, forward Addr) ([]IDExtent, error) {
	a := inline
	if n > baseIDExtents {
		a = forward
	}
	if n > maxIDExtents {
		return nil, corrupt(inline, "uid_gid_map", "%d extents", n)
	}
	size, err := idExtentLayout.Size(k)
	if err != nil {
		return nil, err
	}
	var m []IDExtent
	for i := range int(n) {
		e, err := idExtentLayout.Load(k, a.Add(i*size))
		if err != nil {
			return nil, err
		}
		m = append(m, IDExtent(e))
	}
	return m, nil
}

// UID returns what a user id of the initial namespace is called in ns. ok is false
// for an id that ns does not map, which programs there see as 65534. Source:
// kernel/user_namespace.c:from_kuid.
func (ns *UserNS) UID(kuid uint32) (uid uint32, ok bool) { return mapIDUp(ns.UIDMap, kuid) }

// GID is UID for group ids.
func (ns *UserNS) GID(kgid uint32) (gid uint32, ok bool) { return mapIDUp(ns.GIDMap, kgid) }

func mapIDUp(m []IDExtent, id uint32) (uint32, bool) {
	for _, e := range m {
		if id >= e.Lower && id-e.Lower < e.Count {
			return e.First + (id - e.Lower), true
		}
	}
	return 0, false
}
