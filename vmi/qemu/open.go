package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
	"github.com/ovmigrate/ovmigrate/vmi/qmp"
)

// openTimeout bounds the dialogue with QEMU if the caller's context does not.
const openTimeout = 30 * time.Second

// Open opens the guest behind a QMP socket, "SOCKET" or "SOCKET?pid=PID" where a
// manager such as libvirt made the socket and QEMU is another process. The result
// is a *WritableGuest if o asks for it, else a *Guest. Errors: those of qmp.Dial;
// fs.ErrPermission if QEMU's memory may not be read; ErrLayout.
func Open(ctx context.Context, arg string, o *vmi.Options) (vmi.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	socket, params, err := vmi.SplitPath(arg)
	if err != nil {
		return nil, err
	}
	pid := 0
	for key, v := range params {
		if key != "pid" {
			return nil, fmt.Errorf("qmp:%s: unknown parameter %q (known: pid)", arg, key)
		}
		if pid, err = strconv.Atoi(v[0]); err != nil || pid <= 0 {
			return nil, fmt.Errorf("qmp:%s: no such pid", arg)
		}
	}
	c, err := qmp.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	g := &Guest{qmp: c, pid: pid, log: o.Log()}
	err = g.watchState(ctx)
	if err == nil {
		err = g.open(ctx, o)
	}
	if err != nil {
		g.close()
		c.Close()
		return nil, fmt.Errorf("qmp %s: %w", socket, err)
	}
	if o != nil && o.Writable {
		return &WritableGuest{g}, nil
	}
	return g, nil
}

func (g *Guest) open(ctx context.Context, o *vmi.Options) error {
	if g.pid == 0 {
		g.pid, _ = g.qmp.PeerPID()
	}
	sizes, err := g.backends(ctx)
	if err != nil {
		return err
	}
	text, err := g.qmp.HMP(ctx, "info mtree -f")
	if err != nil {
		return err
	}
	view, err := parseMtree(text)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	blocks, err := ramBlocks(view, sizes)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	if err := g.place(ctx, blocks, o); err != nil {
		return err
	}
	for _, b := range blocks {
		o.Log().Debug("guest RAM", "block", b.id, "phys", fmt.Sprintf("%#x", b.phys),
			"off", fmt.Sprintf("%#x", b.off), "len", fmt.Sprintf("%#x", b.len))
	}
	o.Log().Debug("guest RAM in the host", "pid", g.pid, "sources", g.Backing())
	return g.verify(ctx)
}

// backends returns the sizes of the memory backends that are guest RAM, by id. A
// backend may also be a device's memory (ivshmem), which is not RAM.
func (g *Guest) backends(ctx context.Context) (map[string]uint64, error) {
	var all []struct {
		ID   string
		Size uint64
	}
	if err := g.qmp.Execute(ctx, "query-memdev", nil, &all); err != nil {
		return nil, err
	}
	sizes := make(map[string]uint64, len(all))
	for _, m := range all {
		sizes[m.ID] = m.Size
	}
	var main string
	err := g.qmp.Execute(ctx, "qom-get", map[string]string{"path": "/machine", "property": "memory-backend"}, &main)
	if err != nil || main == "" {
		return sizes, nil // NUMA: the nodes have backends, the machine has none
	}
	ram := make(map[string]uint64)
	keep := func(qomPath string) {
		if id := path.Base(qomPath); sizes[id] != 0 {
			ram[id] = sizes[id]
		}
	}
	keep(main)
	var plugged []struct {
		Data struct{ Memdev string }
	}
	if err := g.qmp.Execute(ctx, "query-memory-devices", nil, &plugged); err != nil {
		return nil, err
	}
	for _, p := range plugged {
		keep(p.Data.Memdev)
	}
	return ram, nil
}

// place finds where in the host the blocks are and opens it.
func (g *Guest) place(ctx context.Context, blocks []block, o *vmi.Options) error {
	if g.pid <= 0 {
		return g.placeByPath(ctx, blocks, o, errors.New("QEMU's process is not visible from here"))
	}
	maps, err := readMaps(g.pid)
	if errors.Is(err, fs.ErrPermission) {
		return g.placeByPath(ctx, blocks, o, err)
	}
	if err != nil {
		return err
	}
	base := make(map[string]uint64) // block id: address of its offset 0 in QEMU
	p := placer{pid: g.pid, maps: maps, writable: o != nil && o.Writable}
	for _, b := range blocks {
		hva, err := g.hostAddress(ctx, b.probe)
		if err == nil {
			hva -= b.probe - b.phys + b.off
			if known, ok := base[b.id]; ok && known != hva {
				err = fmt.Errorf("block %s is at two places", b.id)
			}
		}
		if err != nil {
			g.sources = p.sources
			return fmt.Errorf("%w: %w", ErrLayout, err)
		}
		base[b.id] = hva
		if err := p.add(b.phys, hva+b.off, b.len); err != nil {
			g.sources = p.sources
			if errors.Is(err, errNotMapped) {
				err = fmt.Errorf("%w: process %d listens on the socket but does not hold the guest's RAM; "+
					"if a manager made the socket, add ?pid=PID of QEMU", ErrLayout, g.pid)
			}
			return err
		}
	}
	g.sources = p.sources
	g.t, err = segment.New(p.segs)
	return err
}

// hostAddress asks QEMU where in its own memory a guest-physical address is.
func (g *Guest) hostAddress(ctx context.Context, phys uint64) (uint64, error) {
	text, err := g.qmp.HMP(ctx, fmt.Sprintf("gpa2hva %#x", phys))
	if err != nil {
		return 0, err
	}
	return parseHostAddress(text)
}

// parseHostAddress parses "Host virtual address for 0x0 (pc.ram) is 0x7fa4c7fff000".
func parseHostAddress(text string) (uint64, error) {
	text = strings.TrimSpace(text)
	i := strings.LastIndex(text, " is 0x")
	if i < 0 {
		return 0, fmt.Errorf("gpa2hva: QEMU says %.100q", text)
	}
	n, err := strconv.ParseUint(text[i+len(" is 0x"):], 16, 63)
	if err != nil {
		return 0, fmt.Errorf("gpa2hva: QEMU says %.100q", text)
	}
	return n, nil
}

// placeByPath is place without a look at QEMU's process, for users who may open
// the RAM file but not trace QEMU. cause says why.
func (g *Guest) placeByPath(ctx context.Context, blocks []block, o *vmi.Options, cause error) error {
	files := make(map[string]int) // block id: source
	var segs []segment.Segment
	for _, b := range blocks {
		src, ok := files[b.id]
		if !ok {
			f, err := g.openBackend(ctx, b.id, o != nil && o.Writable)
			if err != nil {
				return fmt.Errorf("RAM block %s: %w; %w (be root or the user that runs QEMU)", b.id, err, cause)
			}
			src = len(g.sources)
			files[b.id] = src
			g.sources = append(g.sources, f)
		}
		segs = append(segs, segment.Segment{Addr: vmi.Phys(b.phys), Len: b.len, Src: src, Off: b.off})
	}
	var err error
	g.t, err = segment.New(segs)
	return err
}

// openBackend opens the file of a shared memory backend by the path QEMU knows.
func (g *Guest) openBackend(ctx context.Context, id string, writable bool) (source, error) {
	get := func(property string, to any) error {
		return g.qmp.Execute(ctx, "qom-get", map[string]string{"path": "/objects/" + id, "property": property}, to)
	}
	var share bool
	if err := get("share", &share); err != nil {
		return nil, err
	}
	var name string
	if err := get("mem-path", &name); err != nil || !share || !path.IsAbs(name) {
		return nil, errors.New("is no shared file")
	}
	var off uint64 // since QEMU 8.1
	if err := get("offset", &off); err == nil && off != 0 {
		return nil, errors.New("starts inside its file")
	}
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return nil, err
	}
	m, err := hostmap.New(f, writable)
	if err != nil {
		return nil, err
	}
	return &sharedFile{m, name}, nil
}
