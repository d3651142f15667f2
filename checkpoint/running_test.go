package checkpoint_test

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/criuimg"
)

// A small process is let go in the pause that captures it, before its images are
// written. It counts on without a gap, many times over, and the copy that was made
// last counts on from a number that it had reached.
func TestCopyOfRunning(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			p := bootPair(t, suite)
			const log, images = "/root/copied.log", "/root/images-copied"
			p.src.must(t, "rm", "-f", log)
			pid := p.src.start(t, log, "/opt/ovm/counter", "20")
			t.Cleanup(func() { p.src.kill(pid) })
			p.src.waitLines(t, log, 5)
			for range 19 {
				p.src.save(t, pid, checkpoint.SaveOptions{})
			}
			_, dir := p.src.save(t, pid, checkpoint.SaveOptions{Leave: checkpoint.LeaveRunning})
			saved := len(p.src.lines(t, log))
			requireCounts(t, p.src.waitLines(t, log, saved+20))

			// The copy goes on from where the file was when it was made.
			p.hand(t, dir, images, log)
			p.dst.must(t, "truncate", "-s", strconv.FormatUint(posOf(t, dir, log), 10), log)
			p.dst.restore(t, images)
			t.Cleanup(func() { p.dst.kill(pid) })
			requireCounts(t, p.dst.waitLines(t, log, saved+20))
			p.src.CheckKernel(t)
			p.dst.CheckKernel(t)
		})
	}
}

// posOf returns how far a file was written when its writer was saved.
func posOf(t *testing.T, dir, path string) uint64 {
	t.Helper()
	set, err := criuimg.OpenDir(dir)
	require.NoError(t, err)
	files, err := set.Files()
	require.NoError(t, err)
	for _, f := range files {
		if f.Reg != nil && f.Reg.GetName() == path {
			return f.Reg.GetPos()
		}
	}
	t.Fatalf("%s is not in the set", path)
	return 0
}
