package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

//go:embed programs/tasks.py
var drgnTasks string

// dumps measures opening dumps of the guest, each from the page cache, and listing its
// tasks, beside drgn and crash on the same file in alternation.
func (b *bench) dumps(g *guest) error {
	noted, compressed := filepath.Join(b.shm, "noted.elf"), filepath.Join(b.shm, "noted.kdump")
	plain := filepath.Join(b.shm, "plain.elf")
	for _, argv := range [][]string{{"convert", noted}, {"convert", compressed}} {
		if err := b.ovmOn(g, argv...); err != nil {
			return err
		}
	}
	if _, err := g.QMP(b.ctx, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + plain}); err != nil {
		return err
	}
	what := fmt.Sprintf("%s, dump of %d MiB: ", g.name(), g.Config().Memory>>20)
	for _, d := range []struct {
		name, path string
		goal       *goal
	}{
		{"QEMU's ELF, no VMCOREINFO", plain, atMost("≤ 20 ms", 20e6)},
		{"ELF with VMCOREINFO", noted, atMost("≤ 20 ms", 20e6)},
		{"kdump, zlib", compressed, nil},
	} {
		opened, listed, err := b.openDump(d.path)
		if err != nil {
			return err
		}
		b.table.add(row{what: what + d.name + ", open, no symbols", ours: opened, goal: d.goal})
		b.table.add(row{what: what + d.name + ", list: a task", ours: listed, goal: atMost("≤ 0.5 µs", 500)})
		peak, err := peakOf(exec.CommandContext(b.ctx, b.ovm, "-g", d.path, "ps"))
		if err != nil {
			return err
		}
		b.table.add(row{what: what + d.name + ", memory of its own that 'ovm ps' takes", ours: samples{peak}, unit: mebibytes, goal: atMost("< 64 MiB", 64<<20-1)})
	}
	for _, path := range []string{noted, compressed} {
		if err := b.besideDrgn(what+filepath.Ext(path)[1:], path); err != nil {
			return err
		}
	}
	return nil
}

// ovmOn runs ovm on a guest that runs.
func (b *bench) ovmOn(g *guest, argv ...string) error {
	return g.lend(func() error {
		out, err := exec.CommandContext(b.ctx, b.ovm, append([]string{"-g", "qmp:" + g.QMPSocket()}, argv...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ovm %s: %w: %s", argv[0], err, out)
		}
		return nil
	})
}

// openDump measures opening a dump, and the second listing of its tasks, for a task.
func (b *bench) openDump(path string) (opened, listed samples, err error) {
	for i := -1; i < b.runs; i++ {
		begin := time.Now()
		mem, err := vmi.Open(b.ctx, path, nil)
		if err != nil {
			return nil, nil, err
		}
		k, err := kernel.Open(b.ctx, mem, nil)
		took := time.Since(begin)
		if err == nil {
			_, err = countTasks(k)
		}
		begin = time.Now()
		n := 0
		if err == nil {
			n, err = countTasks(k)
		}
		each := time.Since(begin) / time.Duration(max(n, 1))
		if err = errors.Join(err, mem.Close()); err != nil {
			return nil, nil, err
		}
		if i >= 0 {
			opened.add(took)
			listed.add(each)
		}
	}
	return opened, listed, nil
}

// besideDrgn measures whole processes that open the dump and list all tasks.
func (b *bench) besideDrgn(what, path string) error {
	script := filepath.Join(b.dir, "tasks.py")
	if err := os.WriteFile(script, []byte(drgnTasks), 0o600); err != nil {
		return err
	}
	const runs = 5
	ours, err := b.process(runs, func() {}, b.ovm, "-g", path, "ps")
	if err != nil {
		return err
	}
	peers := []struct {
		name string
		argv []string
	}{
		{"drgn", []string{"drgn", "-q", "-c", path, "-s", b.vmlinux, script}},
		{"crash", []string{"sh", "-c", "echo 'ps; quit' | tr ';' '\\n' | crash -s \"$0\" \"$1\"", b.vmlinux, path}},
	}
	for _, p := range peers {
		r := row{what: what + ": open and list, the whole process", ours: ours, peer: p.name}
		if _, err := exec.LookPath(p.name); err != nil || b.vmlinux == "" {
			r.note = "not here: " + p.name + " and -vmlinux are needed"
		} else if r.theirs, err = b.process(runs, func() {}, p.argv...); err != nil {
			r.note = "fails: " + err.Error()
		}
		b.table.add(r)
	}
	return nil
}
