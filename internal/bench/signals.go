package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

// signals measures stopping, continuing, killing and freezing a sleeping process:
// how long from the write to the effect, how long the call, how long the guest
// stood still in each pause.
func (b *bench) signals(g *guest) error {
	pid, err := g.start(b.ctx, "/opt/ovm/counter", "1000")
	if err != nil {
		return err
	}
	defer g.kill(pid)
	t, err := g.k.Task(pid)
	if err != nil {
		return err
	}
	type verb struct {
		name                string
		effect, call, pause samples
		do                  func(context.Context) (*signal.Report, error)
	}
	var frozen *signal.Frozen
	send := func(f func(context.Context, *kernel.Task, *signal.Options) (*signal.Report, error)) func(context.Context) (*signal.Report, error) {
		return func(ctx context.Context) (*signal.Report, error) { return f(ctx, t, nil) }
	}
	verbs := []*verb{
		{name: "stop", do: send(signal.Stop)},
		{name: "cont", do: send(signal.Continue)},
		{name: "freeze", do: func(ctx context.Context) (_ *signal.Report, err error) {
			if frozen, err = signal.Freeze(ctx, t, nil); err != nil {
				return nil, err
			}
			return frozen.Report(), nil
		}},
		{name: "thaw", do: func(ctx context.Context) (*signal.Report, error) {
			before := len(frozen.Report().Pauses)
			err := frozen.Thaw(ctx)
			r := frozen.Report()
			r.Pauses, r.Latency = r.Pauses[before:], 0
			return r, err
		}},
	}
	measure := func(v *verb) error {
		begin := time.Now()
		r, err := v.do(b.ctx)
		if err != nil {
			return err
		}
		v.call.add(time.Since(begin))
		if r.Latency > 0 {
			v.effect.add(r.Latency)
		}
		for _, p := range r.Pauses {
			v.pause.add(p)
		}
		return nil
	}
	for range b.runs {
		for _, v := range verbs {
			if err := measure(v); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	kill := &verb{name: "kill", do: send(signal.Kill)}
	for range b.runs {
		victim, err := g.start(b.ctx, "/opt/ovm/counter", "1000")
		if err != nil {
			return err
		}
		if t, err = g.k.Task(victim); err != nil {
			return err
		}
		if err := measure(kill); err != nil {
			return fmt.Errorf("kill: %w", err)
		}
	}
	for _, v := range append(verbs, kill) {
		what := g.name() + ": " + v.name + " a sleeper, "
		b.table.add(row{what: what + "the call", ours: v.call})
		if len(v.effect) > 0 {
			b.table.add(row{what: what + "write to effect", ours: v.effect})
		}
		b.table.add(row{what: what + "each pause of the guest", ours: v.pause})
	}
	return nil
}
