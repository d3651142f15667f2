package kernel

import (
	"encoding/binary"
	"fmt"
)

// Components of the extended state (Intel SDM 13.1).
const (
	XFeatureFP      = 0
	XFeatureSSE     = 1
	XFeatureYMM     = 2
	XFeatureBndRegs = 3
	XFeatureBndCSR  = 4
	XFeatureOpmask  = 5
	XFeatureZMMHi   = 6
	XFeatureHi16ZMM = 7
	XFeaturePKRU    = 9
	XFeatureCETUser = 11
	XFeatureTileCfg = 17
	XFeatureTile    = 18

	xfeatureMax = 20
)

const (
	xsaveLegacy = 512
	xsaveHeader = 64
	xcompacted  = 1 << 63

	// maxXSave bounds the area read from a guest: AMX makes it 11,008 bytes.
	maxXSave = 32 << 10
)

// XState is the FPU state of a thread. Components that are in their initial state
// are absent, whatever stale bytes the guest's buffer holds for them.
type XState struct {
	// Legacy is the FXSAVE area, with parts in initial state filled in.
	Legacy [xsaveLegacy]byte
	// Features has a bit for each component that is present (XSTATE_BV).
	Features uint64
	// Components holds the bytes of those from XFeatureYMM on.
	Components [xfeatureMax][]byte
}

type fpstate struct {
	Size uint32 `k:"size"`
	Regs Addr   `k:"&regs"`
}

var fpstateLayout = LayoutOf[fpstate]("fpstate")

// fpuArea returns where t's XSAVE area is and how large it is, as far as known.
func (t *Task) fpuArea() (Addr, int, error) {
	task, err := t.k.types.Struct("task_struct")
	if err != nil {
		return 0, 0, err
	}
	if f, err := task.Lookup("thread.fpu.state.xsave"); err == nil { // before 5.16
		size, err := t.k.types.Struct("fpu")
		if err != nil {
			return 0, 0, err
		}
		return t.Addr.Add(f.Offset()), size.Size, nil
	}
	var fpu Addr
	if f, err := task.Lookup("thread.fpu"); err == nil {
		fpu = t.Addr.Add(f.Offset())
	} else {
		fpu = t.Addr.Add(task.Size) // 6.16: right behind the task
	}
	off, err := t.k.offsetOf("fpu", "fpstate")
	if err != nil {
		return 0, 0, err
	}
	p, err := t.k.ReadAddr(fpu.Add(off))
	if err != nil {
		return 0, 0, err
	}
	s, err := fpstateLayout.Load(t.k, p)
	if err != nil {
		return 0, 0, err
	}
	return s.Regs, int(s.Size), nil
}

// XState reads the FPU state of a thread that is off the CPU; a running thread's
// is in the processor. Source: arch/x86/kernel/fpu/xstate.c:__copy_xstate_to_uabi_buf.
func (t *Task) XState() (*XState, error) {
	if err := t.k.onlyX86("FPU state"); err != nil {
		return nil, err
	}
	a, size, err := t.fpuArea()
	if err != nil {
		return nil, err
	}
	if size < xsaveLegacy+xsaveHeader || size > maxXSave {
		return nil, corrupt(a, "fpstate", "%d bytes", size)
	}
	b := make([]byte, size)
	if _, err := t.k.ReadAt(b, a); err != nil {
		return nil, fmt.Errorf("pid %d: FPU state: %w", t.PID, err)
	}
	tables, err := t.k.xstateTables()
	if err != nil {
		return nil, err
	}
	return tables.decode(b)
}

func (x *xstateTables) decode(b []byte) (*XState, error) {
	header := b[xsaveLegacy:]
	features := binary.LittleEndian.Uint64(header)
	xcomp := binary.LittleEndian.Uint64(header[8:])
	s := &XState{Features: features}
	copy(s.Legacy[:], b)
	s.initLegacy()
	off := xsaveLegacy + xsaveHeader
	for i := XFeatureYMM; i < xfeatureMax; i++ {
		bit := uint64(1) << i
		size := int(x.size[i])
		at := int(x.offset[i])
		if xcomp&xcompacted != 0 {
			if xcomp&bit == 0 {
				continue
			}
			if x.aligned[i] {
				off = (off + 63) &^ 63
			}
			at = off
			off += size
		}
		if features&bit == 0 {
			continue
		}
		if size == 0 || at+size > len(b) {
			return nil, fmt.Errorf("%w: FPU component %d at %d+%d of %d bytes", ErrCorrupt, i, at, size, len(b))
		}
		s.Components[i] = b[at : at+size]
	}
	return s, nil
}

// initLegacy replaces what XSAVE did not store, because it was in its initial
// state, by that state.
func (s *XState) initLegacy() {
	le := binary.LittleEndian
	if s.Features&(1<<XFeatureFP) == 0 {
		clear(s.Legacy[:24])
		le.PutUint16(s.Legacy[0:], 0x37f)
		clear(s.Legacy[32:160])
	}
	if s.Features&(1<<XFeatureSSE) == 0 {
		clear(s.Legacy[160:416])
	}
	if s.Features&(1<<XFeatureSSE|1<<XFeatureYMM) == 0 {
		le.PutUint32(s.Legacy[24:], 0x1f80)
	}
}

// xstateTables say where each component lies in the guest's XSAVE areas, which
// depends on its processor.
type xstateTables struct {
	offset, size [xfeatureMax]uint32
	aligned      [xfeatureMax]bool
}

// xstateTables reads the tables that the guest kernel filled from CPUID leaf 0xD.
func (k *Kernel) xstateTables() (*xstateTables, error) {
	x := &xstateTables{}
	for _, t := range []struct {
		symbol string
		to     *[xfeatureMax]uint32
	}{{"xstate_offsets", &x.offset}, {"xstate_sizes", &x.size}} {
		a, err := k.Symbol(t.symbol)
		if err != nil {
			return nil, err
		}
		// XFEATURE_MAX entries; unused ones are -1.
		n := xfeatureMax
		if e, err := k.types.Enum("xfeature"); err == nil {
			if v, err := e.EnumValue("XFEATURE_MAX"); err == nil && v > 0 && v < xfeatureMax {
				n = int(v)
			}
		}
		for i := range n {
			v, err := k.ReadU32(a.Add(4 * i))
			if err != nil {
				return nil, err
			}
			if v < maxXSave {
				t.to[i] = v
			}
		}
	}
	if a, err := k.Symbol("xstate_flags"); err == nil {
		for i := XFeatureYMM; i < xfeatureMax; i++ {
			v, err := k.ReadU32(a.Add(4 * i))
			if err != nil {
				return nil, err
			}
			x.aligned[i] = v&2 != 0 // XSTATE_FLAG_ALIGNED64
		}
	} else {
		// Before 6.0: only AMX's tile data is aligned (CPUID 0xD, ECX bit 1).
		x.aligned[XFeatureTile] = true
	}
	return x, nil
}
