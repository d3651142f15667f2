package criuimg

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestVerifyRealSets(t *testing.T) {
	eachRealSet(t, func(t *testing.T, name string, set fstest.MapFS) {
		s, err := Open(set)
		require.NoError(t, err)
		for _, p := range s.Verify() {
			t.Log(p)
			require.NotEqual(t, Error, p.Severity, "%s: %v", name, p)
		}
	})
}
