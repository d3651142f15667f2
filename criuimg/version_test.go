package criuimg

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVersion(t *testing.T) {
	for _, c := range []struct{ set, writer, reader string }{
		{"3.17.1/zoo", "3.17", "2.0"},
		{"4.1.1/zoo", "4.1", "2.0"},
		{"4.2.1/zoo", "4.2", "4.2"},
	} {
		s, err := Open(realSet(t, c.set))
		require.NoError(t, err)
		writer, reader, hints := s.Version()
		require.Equal(t, c.writer, writer, "%s: %v", c.set, hints)
		require.Equal(t, c.reader, reader, "%s: %v", c.set, hints)
	}
	require.True(t, versionLess("3.9", "3.17"))
	require.False(t, versionLess("4.1", "3.19"))
}
