package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// writeImages writes everything but memory.
func (c *collector) writeImages(d *criuimg.Dir) error {
	o := &c.out
	pid := uint64(*o.pstree.Pid)
	type image struct {
		kind *criuimg.Kind
		key  uint64
		msgs []proto.Message
	}
	all := []image{
		{criuimg.Inventory, 0, []proto.Message{o.inventory}},
		{criuimg.Pstree, 0, []proto.Message{o.pstree}},
		{criuimg.IDs, pid, []proto.Message{o.ids}},
		{criuimg.MM, pid, []proto.Message{o.mm}},
		{criuimg.FS, pid, []proto.Message{o.fs}},
		{criuimg.FDInfo, processObjID, messages(o.fdinfo)},
		{criuimg.Files, 0, messages(o.files)},
		{criuimg.Timens, 0, []proto.Message{o.timens}},
	}
	for _, tid := range o.order {
		all = append(all, image{criuimg.Core, uint64(tid), []proto.Message{o.cores[tid]}})
	}
	if len(o.ttys) > 0 {
		all = append(all, image{criuimg.TTYInfo, 0, messages(o.ttys)})
	}
	if o.cgroup != nil {
		all = append(all, image{criuimg.Cgroup, 0, []proto.Message{o.cgroup}})
	}
	if len(o.locks) > 0 {
		all = append(all, image{criuimg.FileLocks, 0, messages(o.locks)})
	}
	if o.seccomp != nil {
		all = append(all, image{criuimg.Seccomp, 0, []proto.Message{o.seccomp}})
	}
	for _, i := range all {
		if err := d.Write(i.kind, i.key, i.msgs...); err != nil {
			return err
		}
	}
	if err := c.writePipes(d, criuimg.PipesData, false); err != nil {
		return err
	}
	return c.writePipes(d, criuimg.FifoData, true)
}

func messages[M proto.Message](in []M) []proto.Message {
	out := make([]proto.Message, len(in))
	for i, m := range in {
		out[i] = m
	}
	return out
}

func (c *collector) writePipes(d *criuimg.Dir, kind *criuimg.Kind, named bool) (err error) {
	if !slices.ContainsFunc(c.out.pipes, func(p pipeData) bool { return p.fifo == named }) {
		return nil
	}
	enc, err := d.Image(kind, 0)
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, enc.Close()) }()
	for _, p := range c.out.pipes {
		if p.fifo != named {
			continue
		}
		if err := enc.Encode(p.entry); err != nil {
			return err
		}
		if len(p.data) > 0 {
			if err := enc.Payload(bytes.NewReader(p.data)); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeMemory writes the pages of the process and of its shared memory. live: the
// guest runs meanwhile.
func (c *collector) writeMemory(ctx context.Context, d *criuimg.Dir, p *pager, live bool) (err error) {
	w, err := d.Pages(criuimg.Pagemap, uint64(*c.out.pstree.Pid))
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, w.Close()) }()
	if err := p.write(ctx, w, c.areas, live); err != nil {
		return err
	}
	for ino, f := range c.shmem {
		if err := c.writeShmem(ctx, d, ino, f, p); err != nil {
			return fmt.Errorf("shared memory %d: %w", ino, err)
		}
	}
	return nil
}

// writeShmem writes an object of anonymous shared memory: all pages that exist,
// whoever mapped them. Others may write to it meanwhile; what is read is as fresh
// as what they would have seen of each other.
func (c *collector) writeShmem(ctx context.Context, d *criuimg.Dir, ino uint64, f *kernel.File, p *pager) (err error) {
	cache, err := f.Inode.PageCache()
	if err != nil {
		return err
	}
	w, err := d.Pages(criuimg.PagemapShmem, ino)
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, w.Close()) }()
	buf := make([]byte, pageSize)
	for folio, err := range cache.Pages() {
		if err != nil {
			return err
		}
		if folio.Swapped {
			return fmt.Errorf("%w: page %d is in swap", errLost, folio.Index)
		}
		for i := range folio.Count {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.copyCached(cache, folio, i, buf); err != nil {
				return err
			}
			if err := w.WritePages((folio.Index+i)*pageSize, buf); err != nil {
				return err
			}
			p.progress(pageSize)
		}
	}
	return nil
}

// copyCached copies page i of a folio to buf and sees that it did not move
// meanwhile.
func (c *collector) copyCached(cache *kernel.PageCache, folio kernel.CachedPages, i uint64, buf []byte) error {
	phys := folio.Phys + vmi.Phys(i*pageSize)
	for range settleRounds {
		if folio.Zero {
			clear(buf)
		} else if _, err := c.k.Memory().ReadPhys(buf, phys); err != nil {
			return err
		}
		now, ok, err := cache.Page(folio.Index + i)
		if err != nil {
			return err
		}
		if !ok || now.Swapped {
			return fmt.Errorf("%w: page %d", errLost, folio.Index+i)
		}
		if now.Phys == phys && now.Zero == folio.Zero {
			return nil
		}
		phys, folio.Zero = now.Phys, now.Zero
	}
	return fmt.Errorf("page %d kept moving while it was copied", folio.Index+i)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
