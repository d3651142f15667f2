package kernel

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// typeName returns the type with its subtype, as mountinfo shows it.
func (s *SuperBlock) typeName() (string, error) {
	if s.Subtype == 0 {
		return s.Type, nil
	}
	sub, err := s.k.CString(s.Subtype, 256)
	if err != nil || sub == "" {
		return s.Type, err
	}
	return s.Type + "." + sub, nil
}

// plainFS are file systems that show no options of their own, or none that can be
// given.
var plainFS = map[string]bool{
	"sysfs": true, "nsfs": true, "mqueue": true, "pipefs": true, "sockfs": true, "rootfs": true,
	"securityfs": true, "configfs": true, "fusectl": true, "pstore": true, "anon_inodefs": true, "bdev": true,
}

// Options returns the options of the file system as the last column of mountinfo
// shows them. complete is false for types whose own options are not known here, of
// which those for all types are returned. Source: fs/proc_namespace.c:show_sb_opts.
func (s *SuperBlock) Options() (o []string, complete bool, err error) {
	o = []string{"rw"}
	if s.Flags&SBReadOnly != 0 {
		o[0] = "ro"
	}
	for _, f := range []struct {
		flag uint64
		name string
	}{{SBSynchronous, "sync"}, {SBDirSync, "dirsync"}, {SBMandLock, "mand"}, {SBLazyTime, "lazytime"}} {
		if s.Flags&f.flag != 0 {
			o = append(o, f.name)
		}
	}
	var own []string
	complete = true
	switch {
	case s.Magic == MagicTmpfs:
		own, err = s.tmpfsOptions()
	case s.Type == "devpts":
		own, err = s.devptsOptions()
	case s.Type == "proc":
		own, err = s.procOptions()
	case s.Type == "cgroup" || s.Type == "cgroup2":
		own, err = s.cgroupOptions()
	default:
		complete = plainFS[s.Type]
	}
	return append(o, own...), complete, err
}

type shmemSBInfo struct {
	MaxBlocks uint64 `k:"max_blocks"`
	MaxInodes uint64 `k:"max_inodes"`
	Mode      uint16 `k:"mode"`
	Huge      uint8  `k:"huge"`
	UID       uint32 `k:"uid"`
	GID       uint32 `k:"gid"`
	Inode64   bool   `k:"full_inums,opt"`
	NoSwap    bool   `k:"noswap,opt"` // since 6.4
}

type ptsFSInfo struct {
	SetUID   int32  `k:"mount_opts.setuid"`
	SetGID   int32  `k:"mount_opts.setgid"`
	UID      uint32 `k:"mount_opts.uid"`
	GID      uint32 `k:"mount_opts.gid"`
	Mode     uint16 `k:"mount_opts.mode"`
	PtmxMode uint16 `k:"mount_opts.ptmxmode"`
	Max      int32  `k:"mount_opts.max"`
}

type procFSInfo struct {
	PIDGID  uint32 `k:"pid_gid"`
	HidePID int32  `k:"hide_pid"`
	PIDOnly int32  `k:"pidonly"`
}

var (
	shmemSBInfoLayout = LayoutOf[shmemSBInfo]("shmem_sb_info")
	ptsFSInfoLayout   = LayoutOf[ptsFSInfo]("pts_fs_info")
	procFSInfoLayout  = LayoutOf[procFSInfo]("proc_fs_info")
)

// tmpfsOptions is mm/shmem.c:shmem_show_options without memory policy and quotas.
func (s *SuperBlock) tmpfsOptions() (o []string, err error) {
	i, err := shmemSBInfoLayout.Load(s.k, s.FSInfo)
	if err != nil {
		return nil, err
	}
	ram, err := s.k.Symbol("_totalram_pages")
	if err != nil {
		return nil, err
	}
	pages, err := s.k.ReadU64(ram)
	if err != nil {
		return nil, err
	}
	if i.MaxBlocks != pages/2 {
		o = append(o, fmt.Sprintf("size=%dk", i.MaxBlocks*(vmi.PageSize/1024)))
	}
	if i.MaxInodes != pages/2 {
		o = append(o, fmt.Sprintf("nr_inodes=%d", i.MaxInodes))
	}
	if i.Mode != 0o1777 {
		o = append(o, fmt.Sprintf("mode=%03o", i.Mode))
	}
	if i.UID != 0 {
		o = append(o, fmt.Sprintf("uid=%d", i.UID))
	}
	if i.GID != 0 {
		o = append(o, fmt.Sprintf("gid=%d", i.GID))
	}
	if i.Inode64 {
		o = append(o, "inode64")
	}
	if names := []string{1: "always", 2: "within_size", 3: "advise"}; i.Huge > 0 && int(i.Huge) < len(names) {
		o = append(o, "huge="+names[i.Huge])
	}
	if i.NoSwap {
		o = append(o, "noswap")
	}
	return o, nil
}

// devptsOptions is fs/devpts/inode.c:devpts_show_options.
func (s *SuperBlock) devptsOptions() (o []string, err error) {
	i, err := ptsFSInfoLayout.Load(s.k, s.FSInfo)
	if err != nil {
		return nil, err
	}
	if i.SetUID != 0 {
		o = append(o, fmt.Sprintf("uid=%d", i.UID))
	}
	if i.SetGID != 0 {
		o = append(o, fmt.Sprintf("gid=%d", i.GID))
	}
	o = append(o, fmt.Sprintf("mode=%03o", i.Mode), fmt.Sprintf("ptmxmode=%03o", i.PtmxMode))
	if i.Max < 1<<20 { // NR_UNIX98_PTY_MAX
		o = append(o, fmt.Sprintf("max=%d", i.Max))
	}
	return o, nil
}

// procOptions is fs/proc/root.c:proc_show_options.
func (s *SuperBlock) procOptions() (o []string, err error) {
	i, err := procFSInfoLayout.Load(s.k, s.FSInfo)
	if err != nil {
		return nil, err
	}
	if i.PIDGID != 0 {
		o = append(o, fmt.Sprintf("gid=%d", i.PIDGID))
	}
	if name := map[int32]string{1: "noaccess", 2: "invisible", 4: "ptraceable"}[i.HidePID]; name != "" {
		o = append(o, "hidepid="+name)
	}
	if i.PIDOnly != 0 {
		o = append(o, "subset=pid")
	}
	return o, nil
}

type kernfsSuperInfo struct {
	Root Addr `k:"root"`
}

var kernfsSuperInfoLayout = LayoutOf[kernfsSuperInfo]("kernfs_super_info")

// cgroupOptions are those of the hierarchy that s shows.
func (s *SuperBlock) cgroupOptions() ([]string, error) {
	i, err := kernfsSuperInfoLayout.Load(s.k, s.FSInfo)
	if err != nil {
		return nil, err
	}
	for h, err := range s.k.CgroupHierarchies() {
		if err != nil {
			return nil, err
		}
		if h.kernfsRoot == i.Root {
			return h.options()
		}
	}
	return nil, corrupt(s.Addr, "super_block", "shows no hierarchy of control groups")
}
