package kernel_test

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// stepper lets a guest run to an address or by single instructions, by QEMU's gdb
// server. See the manual of gdb, "Remote Protocol".
type stepper struct {
	c net.Conn
	r *bufio.Reader
}

func newStepper(t *testing.T, socket string) *stepper {
	t.Helper()
	c, err := net.Dial("unix", socket)
	require.NoError(t, err)
	s := &stepper{c, bufio.NewReader(c)}
	t.Cleanup(func() {
		s.send("D") // the guest runs on
		c.Close()
	})
	// Steps are without interrupts, which there is always one of at their pace.
	// Answers to what was said before come first.
	a, err := s.command("Qqemu.sstep=7")
	for ; a != "OK" && err == nil; a, err = s.answer() {
	}
	require.NoError(t, err)
	return s
}

func (s *stepper) send(packet string) error {
	sum := byte(0)
	for i := range len(packet) {
		sum += packet[i]
	}
	if err := s.c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.c, "$%s#%02x", packet, sum)
	return err
}

func (s *stepper) answer() (string, error) {
	if _, err := s.r.ReadString('$'); err != nil {
		return "", err
	}
	answer, err := s.r.ReadString('#')
	if err != nil {
		return "", err
	}
	if _, err := s.r.Discard(2); err != nil {
		return "", err
	}
	_, err = s.c.Write([]byte("+"))
	return answer[:len(answer)-1], err
}

func (s *stepper) command(packet string) (string, error) {
	if err := s.send(packet); err != nil {
		return "", err
	}
	return s.answer()
}

// runTo lets the guest run until it comes to an address.
func (s *stepper) runTo(a kernel.Addr, kick func() error) error {
	for _, p := range []string{"Z0,%x,1", "c", "z0,%x,1"} {
		if strings.Contains(p, "%") {
			p = fmt.Sprintf(p, uint64(a))
		}
		if err := s.send(p); err != nil {
			return err
		}
		if p == "c" && kick != nil {
			if err := kick(); err != nil {
				return err
			}
		}
		if got, err := s.answer(); err != nil || got != "OK" && !strings.HasPrefix(got, "T05") {
			return fmt.Errorf("%s: %q, %v", p, got, err)
		}
	}
	return nil
}

// checkCPUStack stops the processor at each instruction that follows an entry into the
// kernel. One instruction adds a frame to the stack or takes one away, and leaves
// those further out as they are.
func checkCPUStack(t *testing.T, all *zoo) {
	z := startSchedZoo(t, all.vm, "")
	if z.k.Arch() != paging.X86_64 {
		t.Skip("stacks of processors are read of x86-64 only")
	}
	_, err := z.vm.StartProcess(t.Context(), testvm.Process{
		Argv: []string{"timeout", "1800", "sh", "-c", "while :; do dd if=/dev/zero of=/dev/null bs=64 count=9999; done"}, Stdout: "/dev/null",
	})
	require.NoError(t, err)
	s := newStepper(t, all.gdb)
	w := &stackWatch{z: z, ends: map[string]int{}}
	for _, at := range []string{
		"entry_SYSCALL_64", "syscall_return_via_sysret", "asm_sysvec_apic_timer_interrupt", "error_return",
		"swapgs_restore_regs_and_return_to_usermode", "asm_exc_page_fault", "__switch_to_asm", "ret_from_fork",
	} {
		w.follow(t, s, at, 150, nil)
	}
	t.Run("exception stack", func(t *testing.T) {
		w.follow(t, s, "asm_exc_nmi", 200, func() error { return z.image.(vmi.NMI).InjectNMI(t.Context()) })
	})
	t.Logf("%s: %d steps, %d in user code, %d unsure, %d failed, ends %v", z.k.Release(), w.steps, w.user, w.unsure, w.failed, w.ends)
	require.Less(t, w.unsure*10, w.steps)
	require.Less(t, w.failed*50, w.steps)
	require.Positive(t, w.user)
	require.Contains(t, w.ends, "entry_SYSCALL_64_after_hwframe")
}

// stackWatch sees the stack of a processor change.
type stackWatch struct {
	z                   *schedZoo
	steps, user, unsure int
	failed              int            // the trace ends with an error
	ends                map[string]int // by the outermost function
	before              *kernel.StackTrace
}

func (w *stackWatch) follow(t *testing.T, s *stepper, from string, steps int, kick func() error) {
	at, err := w.z.k.Symbol(from)
	if err != nil {
		return // not in this kernel
	}
	require.NoError(t, s.runTo(at, kick), from)
	w.before = nil
	for range steps {
		w.look(t)
		got, err := s.command("s")
		require.NoError(t, err)
		require.Contains(t, got, "T05")
	}
}

func (w *stackWatch) look(t *testing.T) {
	cpus, err := w.z.image.(vmi.CPUs).CPUs(t.Context())
	require.NoError(t, err)
	tr, err := w.z.k.CPUStack(cpus[0])
	require.NoError(t, err)
	before := w.before
	w.before = tr
	w.steps++
	if tr.Err != nil { // of code that was patched after its table was made, such as pushf of 5.10
		require.ErrorIs(t, tr.Err, kernel.ErrCorrupt, "%v", tr.Frames)
		w.failed++
		w.before = nil
		return
	}
	if len(tr.Frames) == 0 {
		w.user++
		return
	}
	last := tr.Frames[len(tr.Frames)-1]
	w.ends[last.Symbol]++
	if !last.Reliable {
		w.unsure++
		w.before = nil
		return
	}
	for i, f := range tr.Frames {
		require.NotEmpty(t, f.Symbol, "%v", tr.Frames)
		require.Equal(t, i == 0 || f.Interrupted, f.Interrupted, "%v", tr.Frames)
	}
	if before == nil || strings.HasPrefix(last.Symbol, "__switch_to_asm") || tr.Frames[0].Symbol == "__switch_to_asm" {
		return
	}
	// The innermost frame goes on, so that its address is another one.
	a, b := slices.Clone(before.Frames), slices.Clone(tr.Frames)
	slices.Reverse(a)
	slices.Reverse(b)
	same := 0
	for same < min(len(a), len(b)) && a[same].Addr == b[same].Addr {
		same++
	}
	if same < max(len(a), len(b))-2 || len(a)-len(b) > 1 || len(b)-len(a) > 1 {
		t.Errorf("one instruction made %v of %v", tr.Frames, before.Frames)
	}
}
