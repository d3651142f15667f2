package checkpoint

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func TestRestart(t *testing.T) {
	const read, epollWait, futex = 0, 232, 202
	for name, c := range map[string]struct {
		orig     int64
		ax       int64
		signaled bool
		wantAX   uint64
		again    bool
	}{
		"interrupted read":            {read, erestartsys, false, read, true},
		"never visible":               {futex, erestartnointr, true, futex, true},
		"no handler":                  {futex, erestartnohand, false, futex, true},
		"rest of a sleep":             {35, erestartRestartblock, false, negErrno(eintr), false},
		"epoll, not signaled":         {epollWait, eintr, false, epollWait, true},
		"epoll, signaled":             {epollWait, eintr, true, negErrno(eintr), false},
		"EINTR that is a result":      {read, eintr, false, negErrno(eintr), false},
		"finished":                    {read, 17, false, 17, false},
		"no system call":              {-1, erestartsys, false, negErrno(erestartsys), false},
		"not yet decided (ENOSYS)":    {read, enosys, false, negErrno(enosys), false},
		"sigtimedwait, not signaled":  {128, eintr, false, 128, true},
		"semop, signaled by a thread": {65, eintr, true, negErrno(eintr), false},
	} {
		r := kernel.PtRegs{OrigAX: uint64(c.orig), AX: uint64(c.ax), IP: 0x1002, CS: 0x33}
		restart(&r, c.signaled)
		require.Equal(t, c.wantAX, r.AX, name)
		want := uint64(0x1002)
		if c.again {
			want = 0x1000
		}
		require.Equal(t, want, r.IP, name)
	}
}

func TestTLSEntries(t *testing.T) {
	// Flat 32-bit data segment at 0x12345678, limit 0xfffff pages, usable.
	const d = uint64(0x12)<<56 | 0xdf<<48 | 0xf3<<40 | 0x345678<<16 | 0xffff
	all := tlsEntries([3]uint64{0, d, 0})
	require.Len(t, all, 1)
	e := all[0]
	require.Equal(t, uint32(13), e.GetEntryNumber())
	require.Equal(t, uint32(0x12345678), e.GetBaseAddr())
	require.Equal(t, uint32(0xfffff), e.GetLimit())
	require.True(t, e.GetSeg_32Bit())
	require.True(t, e.GetLimitInPages())
	require.True(t, e.GetUsable())
	require.False(t, e.GetSegNotPresent())
	require.False(t, e.GetReadExecOnly())
	require.False(t, e.GetContentsH() || e.GetContentsL())
}

func TestTermiosPacksCharacters(t *testing.T) {
	k := kernel.Termios{Iflag: 1, Oflag: 2, Cflag: 3, Lflag: 4}
	for i := range k.CC {
		k.CC[i] = byte(i + 1)
	}
	e := termios(&k)
	require.Len(t, e.GetCCc(), termiosWords)
	for i, c := range k.CC {
		require.Equal(t, c, byte(e.GetCCc()[i/4]>>(8*(i%4))), "character %d", i)
	}
}

func TestSigqueue(t *testing.T) {
	info := make([]byte, 48)
	info[0], info[24] = 36, 0x42
	q := sigqueue([]kernel.PendingSignal{{Signo: 36, Info: info}, {Signo: sigstop, Info: info}, {Signo: sigkill, Info: info}, {Signo: 36, Info: info}})
	require.Len(t, q.GetSignals(), 2, "what holds or kills the process is ours")
	for _, s := range q.GetSignals() {
		require.Len(t, s.GetSiginfo(), siginfoSize)
		require.Equal(t, info, s.GetSiginfo()[:48])
	}
}

func TestSigactionsLeaveOutTwo(t *testing.T) {
	var acts [kernel.NSig]kernel.SigAction
	for i := range acts {
		acts[i].Mask = uint64(i + 1)
	}
	all := sigactions(&acts)
	require.Len(t, all, 62)
	for _, a := range all {
		require.NotContains(t, []uint64{sigkill, sigstop}, a.GetMask())
	}
}

func TestITimer(t *testing.T) {
	c := &collector{}
	e := c.itimer("x", kernel.ITimer{Value: 1500 * time.Millisecond, Interval: 250 * time.Microsecond})
	require.Equal(t, []uint64{1, 500000, 0, 250}, []uint64{e.GetVsec(), e.GetVusec(), e.GetIsec(), e.GetIusec()})
	require.Empty(t, c.issues.all)
	e = c.itimer("x", kernel.ITimer{Value: time.Second})
	require.Equal(t, uint64(tenYears/time.Second), e.GetIsec())
	require.Len(t, c.issues.all, 1)
	c = &collector{opts: Options{OneShotTimers: true}}
	require.Zero(t, c.itimer("x", kernel.ITimer{Value: time.Second}).GetIsec())
	require.Empty(t, c.issues.all)
}

func TestMembarriers(t *testing.T) {
	require.Zero(t, membarriers(0))
	require.Zero(t, membarriers(1|1<<2|1<<4|1<<6), "ready, but not registered")
	require.Equal(t, uint32(1<<4), membarriers(3))
	require.Equal(t, uint32(1<<2|1<<4|1<<6|1<<8), membarriers(0xff))
}

// Pages that move between two plans are found exactly, however runs are cut, and
// keep their places in the file.
func TestWindowMoved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 60).Draw(t, "pages")
		var vas, was, is []uint64
		va, pfn := uint64(0x10000), uint64(1000)
		changed := map[uint64]uint64{} // va -> new frame
		for range n {
			va += pageSize * rapid.SampledFrom([]uint64{1, 1, 1, 2}).Draw(t, "gap")
			pfn += rapid.SampledFrom([]uint64{1, 1, 1, 7}).Draw(t, "frame gap")
			to := pfn
			if rapid.IntRange(0, 4).Draw(t, "moves") == 0 {
				to += 1 << 20
				changed[va] = to
			}
			vas, was, is = append(vas, va), append(was, pfn), append(is, to)
		}
		w := &window{runs: runsOf(vas, was), again: runsOf(vas, is)}
		file := map[uint64]int64{} // va -> offset
		off := int64(0)
		for _, r := range w.runs {
			w.offs = append(w.offs, off)
			for i := range r.pages {
				file[r.va+i*pageSize] = off
				off += pageSize
			}
		}
		m, err := w.moved()
		require.NoError(t, err)
		found := map[uint64]uint64{}
		for i, r := range m.runs {
			for j := range r.pages {
				va := r.va + j*pageSize
				found[va] = r.pfn + j
				require.Equal(t, file[va], m.offs[i]+int64(j*pageSize))
			}
		}
		require.Equal(t, changed, found)
		w.adopt()
		for i, r := range w.runs {
			require.Equal(t, file[r.va], w.offs[i])
		}
		w.again = append(w.again[:0], w.runs...)
		m, err = w.moved()
		require.NoError(t, err)
		require.Empty(t, m.runs, "adopted")
		if n > 0 { // a page that is gone is an error
			w.again = runsOf(vas[1:], is[1:])
			_, err = w.moved()
			require.ErrorIs(t, err, errLost)
		}
	})
}

// runsOf joins neighbours as plan does.
func runsOf(vas, pfns []uint64) []run {
	var runs []run
	for i, va := range vas {
		if l := len(runs) - 1; l >= 0 && runs[l].va+runs[l].pages*pageSize == va && runs[l].pfn+runs[l].pages == pfns[i] {
			runs[l].pages++
		} else {
			runs = append(runs, run{va, pfns[i], 1})
		}
	}
	return runs
}
