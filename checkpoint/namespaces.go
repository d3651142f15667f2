package checkpoint

import (
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
)

// namespaces refuses a process that does not live in the guest's first namespaces:
// what a namespace holds is not carried yet, but for the clocks.
func (c *collector) namespaces() error {
	ns, err := c.leader.Namespaces()
	if err != nil {
		return err
	}
	for _, n := range ns.All {
		if n.Kind == "time" || n.Kind == "time_for_children" {
			continue
		}
		init, err := ns.IsInit(n.Kind)
		if err != nil {
			return err
		}
		if !init {
			c.issues.refuse(n.Kind+" namespace", "is %s, not the guest's first", n)
		}
	}
	return nil
}

// timeNamespace writes the clocks as the process sees them. CRIU makes a time
// namespace for what it restores, so that they go on from there in a machine whose
// own clocks differ; a process that was restored before lives in such a one.
// Source: criu/timens.c:prepare_timens.
func (c *collector) timeNamespace() error {
	ns, err := c.leader.Namespaces()
	if err != nil {
		return err
	}
	if ns.Get("time").Addr != ns.Get("time_for_children").Addr {
		c.issues.refuse("time namespace", "differs from that of children to come")
	}
	mono, boot, err := ns.TimeOffsets()
	if err != nil {
		return err
	}
	ms, mn := split(c.now.Monotonic+mono, time.Nanosecond)
	bs, bn := split(c.now.Monotonic+c.now.Boot+boot, time.Nanosecond)
	c.out.timens = &timens.TimensEntry{
		Monotonic: &timens.Timespec{TvSec: ms, TvNsec: mn}, Boottime: &timens.Timespec{TvSec: bs, TvNsec: bn},
	}
	return nil
}
