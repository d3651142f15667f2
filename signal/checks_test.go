package signal

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
