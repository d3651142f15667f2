package blockcache

import (
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCache(t *testing.T) {
	c := New(3)
	loads := 0
	get := func(key uint64) byte {
		b, err := c.Get(key, func() ([]byte, error) { loads++; return []byte{byte(key)}, nil })
		require.NoError(t, err)
		return b[0]
	}
	for _, tt := range []struct {
		key   uint64
		loads int
	}{{1, 1}, {2, 2}, {3, 3}, {1, 3}, {4, 4}, {2, 4}, {1, 5}, {4, 5}, {2, 6}} {
		require.EqualValues(t, tt.key, get(tt.key))
		require.Equal(t, tt.loads, loads, "key %d", tt.key)
		require.LessOrEqual(t, len(c.blocks), 3)
	}
	boom := errors.New("boom")
	_, err := c.Get(9, func() ([]byte, error) { return nil, boom })
	require.ErrorIs(t, err, boom)
	require.EqualValues(t, 9, get(9))
}

func TestConcurrent(t *testing.T) {
	c := New(8)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				key := uint64(i*(g+1)) % 20
				b, err := c.Get(key, func() ([]byte, error) { return []byte{byte(key)}, nil })
				if err != nil || b[0] != byte(key) {
					t.Errorf("key %d: %v, %v", key, b, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
