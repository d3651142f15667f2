package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/elfcore"
	"github.com/ovmigrate/ovmigrate/vmi/kcore"
	"github.com/ovmigrate/ovmigrate/vmi/kdump"
	"github.com/ovmigrate/ovmigrate/vmi/lime"
	"github.com/ovmigrate/ovmigrate/vmi/qemu"
	"github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

const longConvert = `convert writes all memory of the guest to OUT, as
  raw     bytes at the offsets that are their addresses (.raw, .img, .bin)
  elf     an ELF core, as QEMU's dump-guest-memory makes (.elf, .core)
  lime    LiME's format (.lime)
  kdump   the compressed format of makedumpfile (.kdump)

An ELF core and a kdump file also get the registers of the processors and VMCOREINFO,
taken from the guest's memory if the source has no note of it. OUT must not exist, and
is there when it is complete. A live guest is paused meanwhile, unless --live is given.`

func (a *app) convertCommand() *cobra.Command {
	var v conversion
	c := a.command("convert OUT", "Write the guest's memory to a file", longConvert, func(c *cobra.Command, args []string) error {
		v.app, v.out = a, args[0]
		if err := v.check(); err != nil {
			return err
		}
		return v.run(c.Context())
	})
	f := c.Flags()
	f.StringVar(&v.format, "format", "", "write `raw`, elf, lime or kdump; default: what OUT ends in")
	f.StringVar(&v.compress, "compress", "", "compress a kdump file by `zlib` (default) or zstd")
	f.BoolVar(&v.live, "live", false, "do not pause a live guest: its memory changes while it is copied")
	return a.jsonFlag(c)
}

// conversion is one run of convert.
type conversion struct {
	app              *app
	out              string
	format, compress string
	live             bool
}

// suffixes say which format a name stands for.
var suffixes = map[string]string{
	".raw": "raw", ".img": "raw", ".bin": "raw",
	".elf": "elf", ".core": "elf",
	".lime":  "lime",
	".kdump": "kdump",
}

// compressions are the values of --compress.
var compressions = map[string]kdump.Compression{"zlib": kdump.Zlib, "zstd": kdump.Zstd}

// check finds the mistakes that need no guest.
func (v *conversion) check() error {
	if v.format == "" {
		v.format = suffixes[strings.ToLower(filepath.Ext(v.out))]
	}
	switch {
	case v.format == "":
		return usagef("%s: as what? give --format raw, elf, lime or kdump", v.out)
	case !slices.Contains([]string{"raw", "elf", "lime", "kdump"}, v.format):
		return usagef("--format %s: there are raw, elf, lime and kdump", v.format)
	case v.compress != "" && v.format != "kdump":
		return usagef("--compress is for kdump files only")
	}
	if v.format == "kdump" && v.compress == "" {
		v.compress = "zlib"
	}
	if _, ok := compressions[v.compress]; !ok && v.compress != "" {
		return usagef("--compress %s: there are zlib and zstd", v.compress)
	}
	return nil
}

// converted is what convert prints.
type converted struct {
	Path       string        `json:"path"`
	Format     string        `json:"format"`
	Compress   string        `json:"compress"`     // "" if not
	Open       string        `json:"open"`         // what to give to -g
	Memory     uint64        `json:"memory_bytes"` // of the guest
	Stored     uint64        `json:"stored_bytes"` // that OUT takes on the disk
	VMCoreInfo string        `json:"vmcoreinfo"`   // from "note" or "memory"; "" if there is none
	CPUs       int           `json:"cpus"`         // whose registers were written
	Pause      time.Duration `json:"pause_ns"`
	Total      time.Duration `json:"total_ns"`
}

func (v *conversion) run(ctx context.Context) (err error) {
	a, begin := v.app, time.Now()
	a.readOnly = true
	if a.guest == "" {
		return usagef("which guest? give -g GUEST")
	}
	if _, err := os.Lstat(v.out); err == nil {
		return fmt.Errorf("write %s: %w", v.out, fs.ErrExist)
	}
	image, err := vmi.Open(ctx, a.guest, &vmi.Options{Logger: a.logger()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()

	r := converted{Path: v.out, Format: v.format, Compress: v.compress, Open: v.out}
	for _, m := range image.Ranges() {
		r.Memory += m.Len()
	}
	if v.format == "raw" {
		if l := ramfile.Layout(image.Ranges()); l != "" {
			r.Open += "?" + l
		}
	}
	o := vmi.DumpOptions{}
	if v.notes() {
		r.VMCoreInfo = v.describe(ctx, image, &o)
	}
	if err := v.copy(ctx, image, &o, &r); err != nil {
		return err
	}
	if st, err := os.Stat(v.out); err == nil {
		r.Stored = uint64(st.Sys().(*syscall.Stat_t).Blocks) * 512
	}
	r.Total = time.Since(begin)
	if a.json {
		return a.printJSON(r)
	}
	return r.print(a)
}

// notes says whether the format has a place for them.
func (v *conversion) notes() bool { return v.format == "elf" || v.format == "kdump" }

// describe finds the machine, the kernel's image and VMCOREINFO, and returns where the latter is from: the
// source's note, or the memory of the kernel. A guest in which no kernel is found is
// converted without.
func (v *conversion) describe(ctx context.Context, image vmi.Image, o *vmi.DumpOptions) (from string) {
	a := v.app
	if m, ok := image.(interface{ Machine() string }); ok {
		o.Machine = m.Machine()
	}
	if n, ok := image.(vmi.Notes); ok && len(n.VMCoreInfo()) > 0 {
		o.VMCoreInfo, from = n.VMCoreInfo(), "note"
	}
	if o.Machine != "" && from != "" && v.format != "elf" {
		return from
	}
	k, err := kernel.Open(ctx, image, &kernel.Options{Logger: a.logger()})
	if err != nil {
		if from == "" {
			fmt.Fprintf(a.stderr, "no VMCOREINFO: %s\n", oneLine(err))
		}
		return from
	}
	if o.Machine == "" {
		o.Machine = machineOf(k)
	}
	o.Image = imageOf(k)
	if s := k.Guest().VMCoreInfo.Text(); s != "" && from == "" {
		o.VMCoreInfo, from = []byte(s), "memory"
	}
	return from
}

// imageOf returns where the kernel has its image, page by page, if its symbols tell.
func imageOf(k *kernel.Kernel) vmi.Mapping {
	g := k.Guest()
	begin, err1 := k.Symbol("_text")
	end, err2 := k.Symbol("_end")
	phys, ok := g.ImagePhys(uint64(begin))
	if err1 != nil || err2 != nil || !ok || end < begin || uint64(begin)%vmi.PageSize != 0 {
		return vmi.Mapping{}
	}
	return vmi.Mapping{Virt: uint64(begin), Phys: phys, Len: uint64(end-begin) &^ (vmi.PageSize - 1)}
}

// machineOf returns what uname -m says in a guest, or "".
func machineOf(k *kernel.Kernel) string {
	t, err := k.Task(1)
	if err != nil {
		return ""
	}
	ns, err := t.Namespaces()
	if err != nil {
		return ""
	}
	u, err := ns.UTS()
	if err != nil {
		return ""
	}
	return u.Machine
}

// copy writes the file, with the guest paused if it can be.
func (v *conversion) copy(ctx context.Context, image vmi.Image, o *vmi.DumpOptions, r *converted) (err error) {
	if !v.live {
		switch image.(type) {
		case *qemu.Process, *kcore.File:
			return fmt.Errorf("%s runs and cannot be paused this way: its memory would change while it is copied; "+
				"add --live to accept that", v.app.guest)
		}
		if p, ok := image.(vmi.Pauser); ok {
			resume, err := p.Pause(ctx)
			if err != nil {
				return err
			}
			begin := time.Now()
			defer func() {
				err = errors.Join(err, resume())
				r.Pause = time.Since(begin)
			}()
		}
	}
	if c, ok := image.(vmi.CPUs); ok && v.notes() {
		if o.CPUs, err = c.CPUs(ctx); err != nil && !errors.Is(err, vmi.ErrNoCPUs) {
			return fmt.Errorf("vCPU registers: %w", err)
		}
		r.CPUs = len(o.CPUs)
	}
	bar := v.app.startProgress("writing")
	defer bar.finish()
	o.Progress = func(done, total uint64) { bar.report(int64(done), int64(total)) }
	switch v.format {
	case "raw":
		return ramfile.Write(ctx, v.out, image, o)
	case "elf":
		return elfcore.Write(ctx, v.out, image, o)
	case "lime":
		return lime.Write(ctx, v.out, image, o)
	}
	return kdump.Write(ctx, v.out, image, &kdump.WriteOptions{DumpOptions: *o, Compression: compressions[v.compress]})
}

func (r *converted) print(a *app) error {
	format := r.Format
	if r.Compress != "" {
		format += ", " + r.Compress
	}
	fmt.Fprintf(a.stdout, "%s of memory written to %s (%s, %s on disk) in %s\n",
		formatSize(r.Memory), printable(r.Path), format, formatSize(r.Stored), round(r.Total))
	if r.Pause > 0 {
		fmt.Fprintf(a.stdout, "  guest paused for %s\n", round(r.Pause))
	}
	_, err := fmt.Fprintf(a.stdout, "open with: ovm -g %s\n", shellQuote(r.Open))
	return err
}

// shellQuote returns s as one word of a shell.
func shellQuote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune("/.-_:,=+@%", r) && !isAlnum(r) }) < 0 {
		return s
	}
	return printable("'" + strings.ReplaceAll(s, "'", `'\''`) + "'")
}

func isAlnum(r rune) bool {
	return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}
