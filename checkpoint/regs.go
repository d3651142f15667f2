package checkpoint

import (
	"encoding/binary"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Error numbers by which a system call that was cut short asks to be restarted
// (include/linux/errno.h). They never reach a program.
const (
	erestartsys          = -512
	erestartnointr       = -513
	erestartnohand       = -514
	erestartRestartblock = -516
	eintr                = -4
	enosys               = -38
)

// System calls that return EINTR rather than restart when a stop interrupts them,
// although calling them again from the start is indistinguishable from never
// having been stopped (signal(7), arch/x86/entry/syscalls/syscall_64.tbl).
var reexecutable = map[uint64]string{
	65: "semop", 128: "rt_sigtimedwait", 208: "io_getevents", 220: "semtimedop",
	232: "epoll_wait", 281: "epoll_pwait", 441: "epoll_pwait2",
}

// restart makes registers that a held thread has in the middle of a system call
// into registers it can be started with elsewhere, as CRIU does on dump. signaled
// says whether a signal waits to be delivered, in which case an EINTR is meant.
// Source: compel/arch/x86/src/lib/infect.c:compel_get_task_regs.
func restart(r *kernel.PtRegs, signaled bool) {
	if !r.InSyscall() || r.Compat() {
		return
	}
	again := func() { r.AX, r.IP = r.OrigAX, r.IP-2 }
	switch int64(r.AX) {
	case erestartsys, erestartnointr, erestartnohand:
		again()
	case erestartRestartblock:
		// The rest of the time was written to the program's memory where it
		// asked for that; what it sees is a call that a handler interrupted.
		r.AX = negErrno(eintr)
	case eintr:
		if reexecutable[r.OrigAX] != "" && !signaled {
			again()
		}
	}
}

func negErrno(e int64) uint64 { return uint64(e) }

func gpregs(r *kernel.PtRegs, s *kernel.ThreadState) *core_x86.UserX86RegsEntry {
	mode := core_x86.UserX86RegsMode_NATIVE
	if r.Compat() {
		mode = core_x86.UserX86RegsMode_COMPAT
	}
	return &core_x86.UserX86RegsEntry{
		R15: &r.R15, R14: &r.R14, R13: &r.R13, R12: &r.R12, Bp: &r.BP, Bx: &r.BX,
		R11: &r.R11, R10: &r.R10, R9: &r.R9, R8: &r.R8, Ax: &r.AX, Cx: &r.CX,
		Dx: &r.DX, Si: &r.SI, Di: &r.DI, OrigAx: &r.OrigAX, Ip: &r.IP, Cs: &r.CS,
		Flags: &r.Flags, Sp: &r.SP, Ss: &r.SS,
		FsBase: &s.FSBase, GsBase: &s.GSBase,
		Ds: new(uint64(s.DS)), Es: new(uint64(s.ES)), Fs: new(uint64(s.FSIndex)), Gs: new(uint64(s.GSIndex)),
		Mode: &mode,
	}
}

// tlsEntries are the three GDT entries of set_thread_area(2), GDT 12 to 14.
// Source: arch/x86/include/asm/desc_defs.h:desc_struct.
func tlsEntries(tls [3]uint64) []*core_x86.UserDescT {
	const firstTLS = 12
	var all []*core_x86.UserDescT
	for i, d := range tls {
		if d == 0 {
			continue
		}
		bit := func(n uint) *bool { return new(d>>n&1 != 0) }
		all = append(all, &core_x86.UserDescT{
			EntryNumber:   new(uint32(firstTLS + i)),
			BaseAddr:      new(uint32(d>>16&0xffffff | d>>56<<24)),
			Limit:         new(uint32(d&0xffff | d>>48&0xf<<16)),
			Seg_32Bit:     bit(54),
			ContentsH:     bit(43),
			ContentsL:     bit(42),
			ReadExecOnly:  new(d>>41&1 == 0),
			LimitInPages:  bit(55),
			SegNotPresent: new(d>>47&1 == 0),
			Usable:        bit(52),
		})
	}
	return all
}

// fpregs encodes the FPU state. Components in their initial state are left out:
// restore starts them there.
func fpregs(x *kernel.XState) *core_x86.UserX86FpregsEntry {
	le := binary.LittleEndian
	l := x.Legacy[:]
	f := &core_x86.UserX86FpregsEntry{
		Cwd: new(uint32(le.Uint16(l[0:]))), Swd: new(uint32(le.Uint16(l[2:]))),
		Twd: new(uint32(le.Uint16(l[4:]))), Fop: new(uint32(le.Uint16(l[6:]))),
		Rip: new(le.Uint64(l[8:])), Rdp: new(le.Uint64(l[16:])),
		Mxcsr: new(le.Uint32(l[24:])), MxcsrMask: new(le.Uint32(l[28:])),
		StSpace: words32(l[32:160]), XmmSpace: words32(l[160:416]), Padding: words32(l[416:512]),
	}
	const known = 1<<kernel.XFeatureFP | 1<<kernel.XFeatureSSE | 1<<kernel.XFeatureYMM |
		1<<kernel.XFeatureBndRegs | 1<<kernel.XFeatureBndCSR | 1<<kernel.XFeatureOpmask |
		1<<kernel.XFeatureZMMHi | 1<<kernel.XFeatureHi16ZMM | 1<<kernel.XFeaturePKRU
	// CRIU puts FP and SSE in the frame in any case.
	xs := &core_x86.UserX86XsaveEntry{
		XstateBv: new(x.Features&known | 1<<kernel.XFeatureFP | 1<<kernel.XFeatureSSE),
	}
	c := &x.Components
	xs.YmmhSpace = fixed32(c[kernel.XFeatureYMM], 64)
	xs.BndregState = fixed64(c[kernel.XFeatureBndRegs], 8)
	xs.BndcsrState = fixed64(c[kernel.XFeatureBndCSR], 8)
	xs.OpmaskReg = fixed64(c[kernel.XFeatureOpmask], 8)
	xs.ZmmUpper = fixed64(c[kernel.XFeatureZMMHi], 64)
	xs.Hi16Zmm = fixed64(c[kernel.XFeatureHi16ZMM], 128)
	xs.Pkru = fixed32(c[kernel.XFeaturePKRU], 2)
	f.Xsave = xs
	return f
}

func words32(b []byte) []uint32 { return fixed32(b, len(b)/4) }

// fixed32 returns exactly n words of b: CRIU takes no other length.
func fixed32(b []byte, n int) []uint32 {
	if b == nil {
		return nil
	}
	w := make([]uint32, n)
	for i := range min(n, len(b)/4) {
		w[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return w
}

func fixed64(b []byte, n int) []uint64 {
	if b == nil {
		return nil
	}
	w := make([]uint64, n)
	for i := range min(n, len(b)/8) {
		w[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return w
}
