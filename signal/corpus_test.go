package signal

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/btfcorpus"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// TestCorpus resolves the layouts of this package against the types of all supported
// kernels, those with PREEMPT_RT left out: they are never written to.
func TestCorpus(t *testing.T) {
	all, err := btfcorpus.Load(filepath.Join("..", "kernel", "testdata", "btf", "corpus.tar.zst"))
	require.NoError(t, err)
	checked := 0
	for _, k := range all {
		if k.Flavour == "rt" {
			continue
		}
		src, err := types.ParseBTF(k.BTF)
		require.NoError(t, err)
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
