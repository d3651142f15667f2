package signal

import (
	"fmt"
	"strconv"
	"strings"
)

// Signal is a signal number of an x86-64 or arm64 Linux guest, 1 to 64. It is not
// syscall.Signal, whose numbers are the host's.
type Signal uint8

// The signals that this package treats specially.
const (
	SIGKILL Signal = 9
	SIGCONT Signal = 18
	SIGSTOP Signal = 19

	sigRTMin Signal = 32 // the kernel's; the C library keeps 32 and 33 for itself
	sigMax   Signal = 64
)

// signalNames is include/uapi/asm-generic/signal.h.
var signalNames = [...]string{
	"", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV",
	"USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
	"VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
}

// String returns the signal's name, such as "SIGSTOP" or "SIGRTMIN+3", with
// SIGRTMIN as user programs count it (34).
func (s Signal) String() string {
	switch {
	case s > 0 && int(s) < len(signalNames):
		return "SIG" + signalNames[s]
	case s == 34:
		return "SIGRTMIN"
	case s > 34 && s <= sigMax:
		return fmt.Sprintf("SIGRTMIN+%d", s-34)
	}
	return fmt.Sprintf("signal %d", uint8(s))
}

// Parse returns the signal of a name or number as kill(1) takes them: "TERM",
// "SIGTERM", "15", "RTMIN+3".
func Parse(name string) (Signal, error) {
	bad := fmt.Errorf("no such signal: %q", name)
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > int(sigMax) {
			return 0, bad
		}
		return Signal(n), nil
	}
	short := strings.TrimPrefix(strings.ToUpper(name), "SIG")
	for i, s := range signalNames {
		if i > 0 && s == short {
			return Signal(i), nil
		}
	}
	if rest, ok := strings.CutPrefix(short, "RTMIN"); ok {
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil || rest[0] != '+' {
				return 0, bad
			}
		}
		if n >= 0 && n <= 30 {
			return Signal(34 + n), nil
		}
	}
	return 0, bad
}

// bit returns the signal's bit in a sigset.
func (s Signal) bit() uint64 { return 1 << (s - 1) }

func sigset(sigs ...Signal) (set uint64) {
	for _, s := range sigs {
		set |= s.bit()
	}
	return set
}

var (
	stopSignals   = sigset(SIGSTOP, 20, 21, 22)              // kernel/signal.c:SIG_KERNEL_STOP_MASK
	ignoreSignals = sigset(SIGCONT, 17, 23, 28)              // SIG_KERNEL_IGNORE_MASK
	dumpSignals   = sigset(3, 4, 5, 6, 7, 8, 11, 24, 25, 31) // SIG_KERNEL_COREDUMP_MASK
)
