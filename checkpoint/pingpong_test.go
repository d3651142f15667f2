package checkpoint_test

import (
	"testing"

	"github.com/ovmigrate/ovmigrate/checkpoint"
)

// Twenty migrations in a row, to and fro: the count never repeats or skips.
func TestPingPong(t *testing.T) {
	const rounds = 20
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			p := bootPair(t, suite)
			const log, images = "/root/pingpong.log", "/root/images-pingpong"
			p.src.must(t, "rm", "-f", log)
			pid := p.src.start(t, log, "/opt/ovm/counter", "20")
			p.src.waitLines(t, log, 5)
			for round := range rounds {
				o := kill
				if round%4 == 3 { // the paper's way, now and then
					o.Hold = checkpoint.HoldStop
				}
				_, dir := p.src.save(t, pid, o)
				p.hand(t, dir, images, log)
				n := len(p.dst.lines(t, log))
				p.dst.restore(t, images)
				requireCounts(t, p.dst.waitLines(t, log, n+5))
				p.src, p.dst = p.dst, p.src
			}
			p.src.kill(pid)
			p.src.CheckKernel(t)
			p.dst.CheckKernel(t)
		})
	}
}
