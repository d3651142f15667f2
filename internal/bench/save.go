package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// places are where images go: in memory and on a disk.
func (b *bench) places() []place {
	return []place{{"memory", b.shm, "/tmp"}, {"disk", b.dir, "/root"}}
}

type place struct {
	name   string
	ours   string
	native string // CRIU's, in its root and in the guest
}

// phases are the parts of saving a process.
type phases struct{ total, hold, pause, write, release samples }

func (p *phases) add(r *checkpoint.Result) {
	p.total.add(r.Total)
	p.hold.add(r.Hold)
	p.pause.add(r.Pause)
	p.write.add(r.Write)
	p.release.add(r.Release)
}

// save saves a process and removes the images.
func (b *bench) save(g *guest, pid kernel.PID, dir string, sync bool) (*checkpoint.Result, error) {
	images := filepath.Join(dir, "images")
	defer os.RemoveAll(images)
	return checkpoint.Save(b.ctx, g.k, pid, images, &checkpoint.SaveOptions{NoSync: !sync})
}

// saveSmall measures saving the minimal process. It goes on each time.
func (b *bench) saveSmall(g *guest) error {
	pid, err := g.start(b.ctx, "/opt/ovm/counter", "20")
	if err != nil {
		return err
	}
	defer g.kill(pid)
	if _, err := b.save(g, pid, b.shm, false); err != nil { // warm-up
		return err
	}
	what := g.name() + ": save a minimal process, to "
	for _, at := range b.places() {
		var ours phases
		var synced, host samples
		batches := max(1, b.runs/5)
		for range batches {
			for range 5 {
				r, err := b.save(g, pid, at.ours, false)
				if err != nil {
					return err
				}
				ours.add(r)
				if r, err = b.save(g, pid, at.ours, true); err != nil {
					return err
				}
				synced.add(r.Total)
			}
			if r, err := b.native.criu(b.ctx, 5, at.native, "/opt/ovm/counter", "20"); err == nil {
				host = append(host, durations(r.Times)...)
			}
		}
		inGuest, err := g.criu(b.ctx, 5, at.native, "/opt/ovm/counter", "20")
		if err != nil {
			return err
		}
		b.table.add(row{
			what: what + at.name, ours: ours.total, peer: "CRIU on the host", theirs: host,
			goal: ratioAtMost("< 1.00", 0.9999), note: b.native.note(),
		})
		b.table.add(row{what: what + at.name, ours: ours.total, peer: "CRIU " + inGuest.Version + " in the guest", theirs: durations(inGuest.Times)})
		b.table.add(row{what: what + at.name + ", with fsync", ours: synced})
		for _, p := range []struct {
			name string
			s    samples
		}{{"hold", ours.hold}, {"pause", ours.pause}, {"write", ours.write}, {"release", ours.release}} {
			b.table.add(row{what: "    of it: " + p.name, ours: p.s})
		}
		if at.name != "memory" {
			continue
		}
		// Opening the guest included, as CRIU's times hold all it has to find out.
		var whole samples
		err = g.lend(func() (err error) {
			images := filepath.Join(at.ours, "images")
			whole, err = b.process(b.runs, func() { os.RemoveAll(images) }, b.ovm,
				"-g", "qmp:"+g.QMPSocket(), "checkpoint", fmt.Sprint(pid), "-D", images, "--no-sync")
			return err
		})
		if err != nil {
			return err
		}
		b.table.add(row{what: what + at.name + ": 'ovm checkpoint', the whole process", ours: whole, peer: "CRIU on the host", theirs: host, note: b.native.note()})
	}
	return nil
}

// note is what stands for the numbers of a CRIU that does not run.
func (n *native) note() string {
	if n.err != nil {
		return "does not run here"
	}
	return ""
}

// saveLarge measures saving a process of a gibibyte against copying as many bytes.
func (b *bench) saveLarge(g *guest) error {
	const runs = 5
	size := fmt.Sprint(b.size)
	for _, kind := range []struct{ name, arg string }{{"", ""}, {" in small pages", "small"}} {
		argv := []string{"/opt/mem", size}
		if kind.arg != "" {
			argv = append(argv, kind.arg)
		}
		for _, at := range b.places() {
			if err := b.saveAgainstCopy(g, at, kind.name, argv, runs); err != nil {
				return err
			}
			if kind.arg != "" {
				continue
			}
			if err := b.saveAgainstCRIU(g, at, argv); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) saveAgainstCopy(g *guest, at place, kind string, argv []string, runs int) error {
	pid, err := g.start(b.ctx, argv...)
	if err != nil {
		return err
	}
	defer g.kill(pid)
	source := filepath.Join(b.shm, "bytes")
	if err := b.keepPages(g, pid, source); err != nil {
		return err
	}
	defer os.Remove(source)
	for _, sync := range []bool{false, true} {
		var ours phases
		var copies samples
		for range runs {
			r, err := b.save(g, pid, at.ours, sync)
			if err != nil {
				return err
			}
			ours.add(r)
			took, err := copyFile(b.ctx, source, filepath.Join(at.ours, "copy"), sync)
			if err != nil {
				return err
			}
			copies.add(took)
		}
		what := fmt.Sprintf("%s: save %d MiB%s, to %s", g.name(), b.size>>20, kind, at.name)
		peer := "cp"
		if sync {
			what, peer = what+", with fsync", "cp, fsync"
		}
		b.table.add(row{what: what, ours: ours.total, peer: peer, theirs: copies, goal: ratioAtMost("≤ 1.50", 1.5)})
		if !sync {
			b.last = ours.total
			b.table.add(row{what: "    of it: the guest stands still", ours: ours.pause})
		}
	}
	return nil
}

func (b *bench) saveAgainstCRIU(g *guest, at place, argv []string) error {
	what := fmt.Sprintf("%s: save %d MiB, to %s", g.name(), b.size>>20, at.name)
	host := row{what: what, ours: b.last, peer: "CRIU on the host", note: b.native.note()}
	if r, err := b.native.criu(b.ctx, 3, at.native, argv...); err == nil {
		host.theirs = durations(r.Times)
	}
	b.table.add(host)
	r, err := g.criu(b.ctx, 2, at.native, argv...)
	if err != nil {
		return err
	}
	b.table.add(row{what: what, ours: b.last, peer: "CRIU " + r.Version + " in the guest", theirs: durations(r.Times)})
	return nil
}

// keepPages saves a process and keeps what there is to copy: its pages.
func (b *bench) keepPages(g *guest, pid kernel.PID, to string) error {
	images := filepath.Join(b.shm, "images")
	defer os.RemoveAll(images)
	if _, err := checkpoint.Save(b.ctx, g.k, pid, images, &checkpoint.SaveOptions{NoSync: true}); err != nil {
		return err
	}
	return os.Rename(filepath.Join(images, "pages-1.img"), to)
}
