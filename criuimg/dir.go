package criuimg

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// DirOptions change how a Dir is written.
type DirOptions struct {
	// NoSync leaves out the fsync of files and directories. After a power
	// failure a committed set may then be incomplete. For sets on tmpfs, and for
	// measuring.
	NoSync bool
}

// Dir is an image set being written. Everything goes to a hidden directory
// beside the final one; Commit renames it, so the final name never shows an
// incomplete set. Files have mode 0600, directories 0700: images hold the
// memory of a process.
//
// Methods may be called by several goroutines at once.
type Dir struct {
	path string // final
	tmp  string
	o    DirOptions

	mu      sync.Mutex
	open    map[string]*os.File // by name; not yet closed
	names   []string            // complete files
	pages   uint32              // last number used for a pages file
	failed  error               // first error: the set cannot be committed
	settled bool                // Commit or Abort is done
}

// Create begins a set that is to appear as the directory path. The parent
// directory must exist. If path exists the error satisfies
// errors.Is(err, fs.ErrExist), except that an empty directory is replaced.
// The caller must end with Commit or Abort; Abort after Commit does nothing, so
// it can be deferred.
func Create(path string) (*Dir, error) { return CreateWith(path, DirOptions{}) }

// CreateWith is Create with options.
func CreateWith(path string, o DirOptions) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	if err := checkTarget(abs); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(abs), "."+filepath.Base(abs)+".tmp-*")
	if err != nil {
		return nil, err
	}
	return &Dir{path: abs, tmp: tmp, o: o, open: map[string]*os.File{}}, nil
}

// checkTarget finds out early what would make the final rename fail.
func checkTarget(path string) error {
	exist := &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return exist
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(1)
	d.Close()
	if len(names) > 0 {
		return exist
	}
	if err != io.EOF {
		return err
	}
	if up, err := os.Lstat(filepath.Dir(path)); err == nil && device(up) != device(st) || filepath.Dir(path) == path {
		return fmt.Errorf("criuimg: %s is a mount point: name a new directory inside it", path)
	}
	return nil
}

func device(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev)
	}
	return 0
}

// Path returns the final path of the set.
func (d *Dir) Path() string { return d.path }

// Write writes a whole image: its entries and nothing else. key must be 0 for
// kinds whose names carry none. Images whose entries have payload need Image.
func (d *Dir) Write(k *Kind, key uint64, msgs ...proto.Message) error {
	e, err := d.Image(k, key)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if err := e.Encode(m); err != nil {
			break
		}
	}
	return e.Close()
}

// Image begins an image and returns its encoder, which must be closed.
func (d *Dir) Image(k *Kind, key uint64) (*Encoder, error) {
	if k.Frame == FrameRaw {
		return nil, fmt.Errorf("criuimg: %s is raw data, not entries", k)
	}
	name, f, err := d.create(k, key)
	if err != nil {
		return nil, err
	}
	e := NewEncoder(f, k)
	e.close = func(err error) error { return d.done(name, err) }
	return e, nil
}

// Pages begins a pagemap of kind k (Pagemap with a pid, PagemapShmem with a
// shmid) and a pages file, whose number is chosen here.
func (d *Dir) Pages(k *Kind, key uint64) (*PageWriter, error) {
	if k != Pagemap && k != PagemapShmem {
		return nil, fmt.Errorf("criuimg: %s is no pagemap", k)
	}
	d.mu.Lock()
	d.pages++
	id := d.pages
	d.mu.Unlock()
	name, f, err := d.create(k, key)
	if err != nil {
		return nil, err
	}
	pagesName, pf, err := d.create(Pages, uint64(id))
	if err != nil {
		return nil, d.done(name, err)
	}
	w := NewPageWriter(f, pf, k, id)
	w.close = func(err error) error { return d.done(name, d.done(pagesName, err)) }
	return w, nil
}

// Raw begins a file without entries, such as a route dump, and returns its
// writer, which must be closed.
func (d *Dir) Raw(k *Kind, key uint64) (io.WriteCloser, error) {
	if k.Frame != FrameRaw || k == Pages {
		return nil, fmt.Errorf("criuimg: %s is not written raw", k)
	}
	name, f, err := d.create(k, key)
	if err != nil {
		return nil, err
	}
	return &rawFile{d: d, name: name, File: f}, nil
}

type rawFile struct {
	*os.File
	d    *Dir
	name string
	err  error
}

func (r *rawFile) Write(p []byte) (int, error) {
	n, err := r.File.Write(p)
	if r.err == nil {
		r.err = err
	}
	return n, err
}

func (r *rawFile) Close() error { return r.d.done(r.name, r.err) }

func (d *Dir) create(k *Kind, key uint64) (string, *os.File, error) {
	if err := k.checkKey(key); err != nil {
		return "", nil, err
	}
	name := k.FileName(key)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.settled {
		return "", nil, fmt.Errorf("criuimg: %s: the set is already committed or aborted", name)
	}
	f, err := os.OpenFile(filepath.Join(d.tmp, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if !errors.Is(err, fs.ErrExist) {
			d.fail(err)
		}
		return "", nil, err
	}
	d.open[name] = f
	return name, f, nil
}

// done closes a file and records it as complete, or the set as failed.
func (d *Dir) done(name string, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.open[name]
	if f == nil {
		if err == nil {
			err = fmt.Errorf("criuimg: %s: %w", name, fs.ErrClosed)
		}
		return err
	}
	delete(d.open, name)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		err = inFile(name, err)
		d.fail(err)
		return err
	}
	d.names = append(d.names, name)
	return nil
}

// fail records the first error. d.mu is held.
func (d *Dir) fail(err error) {
	if d.failed == nil {
		d.failed = err
	}
}

// Commit makes the set durable and gives it its final name. If anything failed
// or is still open, or the name has been taken meanwhile, nothing of the set
// stays and the error says why.
func (d *Dir) Commit() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.settled {
		return errors.New("criuimg: the set is already committed or aborted")
	}
	for name := range d.open {
		d.fail(fmt.Errorf("criuimg: Commit while %s is open", name))
	}
	err := d.failed
	if err == nil {
		err = d.sync()
	}
	if err == nil {
		err = rename(d.tmp, d.path)
	}
	if err != nil {
		return errors.Join(err, d.discard())
	}
	d.settled = true
	if d.o.NoSync {
		return nil
	}
	return syncFile(filepath.Dir(d.path))
}

// sync writes all files to disk, several at a time: each fsync waits for the
// same journal.
func (d *Dir) sync() error {
	if d.o.NoSync {
		return nil
	}
	var g errgroup.Group
	g.SetLimit(16)
	for _, name := range d.names {
		g.Go(func() error { return syncFile(filepath.Join(d.tmp, name)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return syncFile(d.tmp)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Abort removes everything written so far. It does nothing after Commit or Abort.
func (d *Dir) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.settled {
		return nil
	}
	return d.discard()
}

// discard closes and removes all files. d.mu is held.
func (d *Dir) discard() error {
	d.settled = true
	for name, f := range d.open {
		f.Close()
		delete(d.open, name)
	}
	return os.RemoveAll(d.tmp)
}

// rename is rename(2), which replaces an empty directory; os.Rename refuses to.
func rename(from, to string) error {
	if err := syscall.Rename(from, to); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
