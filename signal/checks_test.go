package signal

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// The beginning of signal_wake_up_state, as it was found in guests.
func TestSigPendingFromCode(t *testing.T) {
	for name, c := range map[string]struct {
		code string
		imm  byte
		ok   bool
	}{
		"6.12, one CPU: the lock prefix is patched away": {"660f1f000f1f4400005348 89fb3e800f0483ce01e877ba030085c074065bc3", 0x04, true},
		"lock orb $4,(%rdi)":                             {"0f1f440000 53 f0800f04 89f3", 0x04, true},
		"lock orb $2,(%rdi)":                             {"f3480f1efa f0800f02 c3", 0x02, true},
		"lock orb $4,0x10(%rdi)":                         {"f0804f1004 c3", 0x04, true},
		"lock andb, not orb":                             {"f0802704c3c3c3c3", 0, false},
		"orb without lock":                               {"90800f04c3c3c3c3", 0, false},
		"SIB":                                            {"f0800c2404c3c3c3", 0, false},
		"cut off":                                        {"f0800f", 0, false},
		"cut off before displacement":                    {"90f0804f10", 0, false},
		"empty":                                          {"", 0, false},
	} {
		code, err := hex.DecodeString(strings.ReplaceAll(c.code, " ", ""))
		require.NoError(t, err)
		imm, ok := sigPendingFromCode(code)
		require.Equal(t, c.ok, ok, name)
		require.Equal(t, c.imm, imm, name)
	}
}

func FuzzSigPendingFromCode(f *testing.F) {
	f.Add([]byte{0xf0, 0x80, 0x0f, 0x04})
	f.Fuzz(func(t *testing.T, code []byte) { sigPendingFromCode(code) })
}

func TestVersionAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.18.0-1-amd64": true, "6.18-rc1": true, "7.0": true, "6.17.9": false,
		"6.12.107+deb13-cloud-amd64": false, "6.1.0-50-cloud-amd64": false, "5.10.0": false, "": false, "garbage": false, "6": false, "6.": false, "10.2": true,
	} {
		require.Equal(t, want, versionAtLeast(release, 6, 18), release)
	}
}

// Code of do_bpf_send_signal: one that drops no reference when it does would free a task
// that is in use.
func TestDropsTask(t *testing.T) {
	const f = kernel.Addr(0xffffffff81000000)
	symbols := map[kernel.Addr]string{f + 0x105: "group_send_sig_info", f + 0x205: "put_task_struct", f + 0x305: "kfree", f + 0x405: "__x86_return_thunk"}
	at := func(a kernel.Addr) (string, uint64, bool) {
		if name, ok := symbols[a]; ok {
			return name, 0, true
		}
		return "do_bpf_send_signal", uint64(a - f), a >= f && a < f+0x100
	}
	for name, c := range map[string]struct {
		code  string
		drops bool
		known bool
	}{
		"5.10: sends":                    {"e800010000 c3", false, true},
		"jumps to send":                  {"e900010000", false, true},
		"sends, returns by a thunk":      {"e800010000 e9fb030000", false, true},
		"6.1: lock xadd":                 {"e800010000 83c8ff f00fc143 28 c3", true, true},
		"lock patched away":              {"e800010000 3e0fc14328 c3", true, true},
		"6.12 with PREEMPT_RT: calls it": {"e800010000 e8fb010000 c3", true, true},
		"calls something else":           {"e800010000 e8fb020000 c3", false, false},
		"jumps within":                   {"eb00 e9f7ffffff c3", false, true},
		"cut off":                        {"e80001", false, true},
	} {
		code, err := hex.DecodeString(strings.ReplaceAll(c.code, " ", ""))
		require.NoError(t, err)
		drops, err := dropsTask(code, f, at)
		require.Equal(t, c.drops, drops, name)
		if c.known {
			require.NoError(t, err, name)
		} else {
			require.ErrorIs(t, err, ErrUnsupported, name)
		}
	}
}
