package signal

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/btfcorpus"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// TestCorpus resolves the layouts of this package against the types of all supported
// kernels, and tells by them which ones have the sleeping locks of PREEMPT_RT.
func TestCorpus(t *testing.T) {
	all, err := btfcorpus.Load(filepath.Join("..", "kernel", "testdata", "btf", "corpus.tar.zst"))
	require.NoError(t, err)
	checked := 0
	for _, k := range all {
		src, err := types.ParseBTF(k.BTF)
		require.NoError(t, err)
		spinlock, err := src.Struct("spinlock")
		require.NoError(t, err)
		require.Equal(t, k.Flavour == "rt", sleepingLock(spinlock), k.Name())
		sighand, err := src.Struct("sighand_struct")
		require.NoError(t, err)
		_, err = sighand.Lookup("siglock.lock.wait_lock.raw_lock")
		require.Equal(t, k.Flavour == "rt", err == nil, k.Name())
		for name, l := range map[string]interface{ Check(types.Source) error }{
			"task": taskLayout, "signal": signalLayout, "sighand": sighandLayout, "sigaction": sigactionLayout,
			"rq": rqLayout, "work": workLayout, "llist": llistLayout, "csd": csdLayout,
			"timer": timerLayout, "timerBase": timerBaseLayout, "irqWork": irqWorkLayout, "sigqueue": sigqueueLayout, "wakeQ": wakeQLayout,
		} {
			if err := l.Check(src); err != nil {
				t.Errorf("%s: %s: %v", k.Name(), name, err)
			}
			checked++
		}
	}
	require.GreaterOrEqual(t, checked, 160)
}
