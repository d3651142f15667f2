package signal

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Signal{
		"TERM": 15, "SIGTERM": 15, "sigkill": 9, "19": 19, "64": 64, "STKFLT": 16,
		"SYS": 31, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMIN+30": 64, "CONT": 18,
	} {
		got, err := Parse(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "0", "65", "-1", "SIG", "FOO", "RTMIN+31", "RTMIN-1", "RTMIN3", "RTMIN+x", "SIGSIGTERM", "99999999999999999999"} {
		_, err := Parse(in)
		require.Error(t, err, in)
	}
	for s := Signal(1); s <= sigMax; s++ {
		if s == 32 || s == 33 {
			require.Equal(t, "signal 32", Signal(32).String())
			continue
		}
		got, err := Parse(s.String())
		require.NoError(t, err)
		require.Equal(t, s, got)
	}
	require.EqualValues(t, 1<<18, SIGSTOP.bit())
	require.EqualValues(t, 0x3c0000, stopSignals)
	_, err := ParseStrategy("hope")
	require.Error(t, err)
	s, err := ParseStrategy("")
	require.NoError(t, err)
	require.Equal(t, Auto, s)
}
