package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "",
		"plain":              "plain",
		"größer 字":           "größer 字",
		"a\nb\tc":            `a\nb\tc`,
		"\x1b[2Jgone":        `\x1b[2Jgone`,
		"bad\xff\xc3utf":     `bad\xff\xc3utf`,
		"right\u202eto-left": `right\xe2\x80\xaeto-left`,
	} {
		require.Equal(t, want, printable(in))
	}
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "s"))
		for _, r := range printable(s) {
			require.True(t, r >= ' ' && r != 0x7f && r != '\ufffd', "%q of %q", r, s)
		}
	})
}

// A table must stay one whatever its cells hold.
func TestTable(t *testing.T) {
	var b bytes.Buffer
	tab := newTable(&b, "PID", "NAME")
	tab.row(1, "evil\tname\n2\tinit")
	require.NoError(t, tab.flush())
	require.Equal(t, "PID  NAME\n1    evil\\tname\\n2\\tinit\n", b.String())
}

func TestHex(t *testing.T) {
	b, err := json.Marshal(hex(0xffffffffff600000))
	require.NoError(t, err)
	require.Equal(t, `"0xffffffffff600000"`, string(b))
	var h hex
	require.NoError(t, json.Unmarshal(b, &h))
	require.Equal(t, hex(0xffffffffff600000), h)
}

func TestParse(t *testing.T) {
	for in, want := range map[string]uint64{"0": 0, "4096": 4096, "0x1000": 4096, "4K": 4096, "4k": 4096, "3M": 3 << 20, "1G": 1 << 30} {
		got, err := parseSize(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "K", "-1", "1T", "1.5M", "99999999999G", "0x", "18446744073709551616"} {
		_, err := parseSize(in)
		require.Error(t, err, in)
	}
	for in, want := range map[string]uint64{"400000": 0x400000, "0x7fff": 0x7fff, "ffffffffff600000": 0xffffffffff600000} {
		got, err := parseAddr(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	require.Equal(t, []string{}, splitArgs(nil))
	require.Equal(t, []string{"sh", "-c", ""}, splitArgs([]byte("sh\x00-c\x00\x00")))
	require.Equal(t, []string{"title"}, splitArgs([]byte("title")))
}

func TestFormat(t *testing.T) {
	require.Equal(t, "0 B", formatSize(0))
	require.Equal(t, "1023 B", formatSize(1023))
	require.Equal(t, "1.5 KiB", formatSize(1536))
	require.Equal(t, "512 MiB", formatSize(512<<20))
	require.Equal(t, 1230*time.Microsecond, round(1_234_567))
	require.Equal(t, 45*time.Nanosecond, round(45))
	require.Equal(t, "1 error", count(1, "error"))
	require.Equal(t, "0 errors", count(0, "error"))
}

// An error is one line, whatever it is made of.
func TestOneLine(t *testing.T) {
	require.Equal(t, "a; b", oneLine(errors.Join(errors.New("a"), errors.New("b"))))
	require.Equal(t, `x \x1b`, oneLine(errors.New("x \x1b\n\n")))
}
