package criuimg

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"sync"

	"google.golang.org/protobuf/proto"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	criufs "github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
)

// imgVersion is the only layout of image files this package reads: all versions
// of CRIU from 2.0 to 4.2 write it.
const imgVersion = 2

// maxParents bounds the chain of incremental sets.
const maxParents = 128

// ImageFile is one file of a set.
type ImageFile struct {
	Kind *Kind
	Key  uint64
	Name string
	Size int64 // bytes
}

// Set is an image directory opened for reading. Images are decoded when asked
// for and kept. It is safe for concurrent use; messages must not be changed.
type Set struct {
	fsys    fs.FS
	images  []ImageFile
	byName  map[string]ImageFile
	unknown []string // files that look like images and are none we know
	inv     *inventory.InventoryEntry

	mu    sync.Mutex
	cache map[string]decoded
}

type decoded struct {
	msgs []proto.Message
	err  error
}

// OpenDir opens the image set in a directory.
func OpenDir(dir string) (*Set, error) { return Open(os.DirFS(dir)) }

// Open opens the image set at the root of fsys. It reads the inventory and
// refuses, with ErrVersion, sets of another layout than CRIU 2.0 to 4.2 write.
// Without inventory the error satisfies errors.Is(err, fs.ErrNotExist).
func Open(fsys fs.FS) (*Set, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, err
	}
	s := &Set{fsys: fsys, byName: map[string]ImageFile{}, cache: map[string]decoded{}}
	for _, e := range entries {
		k, key, ok := KindOf(e.Name())
		if !ok {
			if path.Ext(e.Name()) == ".img" {
				s.unknown = append(s.unknown, e.Name())
			}
			continue
		}
		fi, err := fs.Stat(fsys, e.Name())
		if err != nil {
			return nil, err
		}
		if !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("criuimg: %s is not a regular file", e.Name())
		}
		f := ImageFile{Kind: k, Key: key, Name: e.Name(), Size: fi.Size()}
		s.images = append(s.images, f)
		s.byName[f.Name] = f
	}
	if s.inv, err = single[*inventory.InventoryEntry](s, Inventory, 0); err != nil {
		return nil, err
	}
	if v := s.inv.GetImgVersion(); v != imgVersion {
		return nil, &FormatError{File: Inventory.FileName(0), Offset: 4, Err: fmt.Errorf("%w: img_version %d, only %d is", ErrVersion, v, imgVersion)}
	}
	return s, nil
}

// Images returns all images of the set, sorted by name.
func (s *Set) Images() []ImageFile { return append([]ImageFile(nil), s.images...) }

// Keys returns the keys of all images of one kind, ascending.
func (s *Set) Keys(k *Kind) []uint64 {
	var keys []uint64
	for _, f := range s.images {
		if f.Kind == k {
			keys = append(keys, f.Key)
		}
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	return keys
}

// Has reports whether the set contains an image. CRIU takes a missing image for
// an empty one.
func (s *Set) Has(k *Kind, key uint64) bool {
	_, ok := s.byName[k.FileName(key)]
	return ok
}

// Inventory returns the one entry of inventory.img.
func (s *Set) Inventory() *inventory.InventoryEntry { return s.inv }

// Pstree returns the processes, parents before children.
func (s *Set) Pstree() ([]*pstree.PstreeEntry, error) { return List[*pstree.PstreeEntry](s, Pstree, 0) }

// Core returns registers and state of the thread tid.
func (s *Set) Core(tid uint32) (*criu_core.CoreEntry, error) {
	return single[*criu_core.CoreEntry](s, Core, uint64(tid))
}

// IDs returns the object and namespace ids of process pid.
func (s *Set) IDs(pid uint32) (*criu_core.TaskKobjIdsEntry, error) {
	return single[*criu_core.TaskKobjIdsEntry](s, IDs, uint64(pid))
}

// MM returns the address space of process pid.
func (s *Set) MM(pid uint32) (*mm.MmEntry, error) { return single[*mm.MmEntry](s, MM, uint64(pid)) }

// FS returns current and root directory and umask of process pid.
func (s *Set) FS(pid uint32) (*criufs.FsEntry, error) {
	return single[*criufs.FsEntry](s, FS, uint64(pid))
}

// FDInfo returns the file table with the given files_id.
func (s *Set) FDInfo(filesID uint32) ([]*fdinfo.FdinfoEntry, error) {
	return List[*fdinfo.FdinfoEntry](s, FDInfo, uint64(filesID))
}

// Files returns all open files.
func (s *Set) Files() ([]*fdinfo.FileEntry, error) { return List[*fdinfo.FileEntry](s, Files, 0) }

// TTYInfo returns all terminals.
func (s *Set) TTYInfo() ([]*tty.TtyInfoEntry, error) { return List[*tty.TtyInfoEntry](s, TTYInfo, 0) }

// List returns all entries of an image, which must be of type M; payloads are
// left out. A missing image is an error that satisfies
// errors.Is(err, fs.ErrNotExist).
func List[M proto.Message](s *Set, k *Kind, key uint64) ([]M, error) {
	msgs, err := s.load(k, key)
	if err != nil {
		return nil, err
	}
	out := make([]M, len(msgs))
	for i, m := range msgs {
		var ok bool
		if out[i], ok = m.(M); !ok {
			return nil, fmt.Errorf("criuimg: %s holds %T, not %T", k.FileName(key), m, out[i])
		}
	}
	return out, nil
}

// single returns the only entry of an image. CRIU reads one and ignores the
// rest, which therefore is an error in Verify, not here.
func single[M proto.Message](s *Set, k *Kind, key uint64) (M, error) {
	var zero M
	list, err := List[M](s, k, key)
	if err != nil {
		return zero, err
	}
	if len(list) == 0 {
		return zero, &FormatError{File: k.FileName(key), Err: fmt.Errorf("%w: no entry", ErrTruncated)}
	}
	return list[0], nil
}

// load decodes an image once.
func (s *Set) load(k *Kind, key uint64) ([]proto.Message, error) {
	name := k.FileName(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.cache[name]; ok {
		return c.msgs, c.err
	}
	var c decoded
	c.msgs, c.err = s.decode(k, key)
	s.cache[name] = c
	return c.msgs, c.err
}

func (s *Set) decode(k *Kind, key uint64) (msgs []proto.Message, err error) {
	r, err := s.Image(k, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		m, err := r.Next()
		if err == io.EOF {
			return msgs, nil
		}
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
}

// ImageReader reads one image of a set.
type ImageReader struct {
	*Decoder
	name string
	f    fs.File
}

// Next is Decoder.Next; errors name the file.
func (r *ImageReader) Next() (proto.Message, error) {
	m, err := r.Decoder.Next()
	if err != nil && err != io.EOF {
		err = inFile(r.name, err)
	}
	return m, err
}

// Close closes the file.
func (r *ImageReader) Close() error { return r.f.Close() }

// Image opens an image for reading entries and payloads one by one.
func (s *Set) Image(k *Kind, key uint64) (*ImageReader, error) {
	return openImage(s.fsys, k.FileName(key), k)
}

func openImage(fsys fs.FS, name string, k *Kind) (*ImageReader, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	d, err := NewDecoder(f, k)
	if err != nil {
		f.Close()
		return nil, inFile(name, err)
	}
	return &ImageReader{Decoder: d, name: name, f: f}, nil
}

// Memory gives access to the private memory of process pid, including what an
// incremental set left in its parents. The reader must be closed.
func (s *Set) Memory(pid uint32) (*PageReader, error) { return s.openPages(Pagemap, uint64(pid)) }

// Shmem gives access to the shared memory object shmid; addresses are offsets
// into it. The reader must be closed.
func (s *Set) Shmem(shmid uint64) (*PageReader, error) { return s.openPages(PagemapShmem, shmid) }

func (s *Set) openPages(k *Kind, key uint64) (*PageReader, error) {
	return openPages(s.fsys, "", k, key, 0)
}

func openPages(fsys fs.FS, dir string, k *Kind, key uint64, depth int) (r *PageReader, err error) {
	if depth > maxParents {
		return nil, fmt.Errorf("criuimg: more than %d parent sets", maxParents)
	}
	name := path.Join(dir, k.FileName(key))
	img, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	r, err = NewPageReader(img, k, nil)
	img.Close()
	if err != nil {
		return nil, inFile(name, err)
	}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	pages := path.Join(dir, Pages.FileName(uint64(r.PagesID())))
	f, err := fsys.Open(pages)
	if err != nil {
		return r, err
	}
	r.close = append(r.close, f)
	ra, ok := f.(io.ReaderAt)
	if !ok {
		return r, fmt.Errorf("criuimg: %s: %T has no ReadAt", pages, f)
	}
	r.pages = ra
	for _, run := range r.runs {
		if run.Flags&PageParent == 0 || run.Off >= 0 {
			continue
		}
		r.Parent, err = openPages(fsys, path.Join(dir, "parent"), k, key, depth+1)
		if err != nil {
			r.Parent = nil
			return r, fmt.Errorf("criuimg: %s refers to a parent set: %w", name, err)
		}
		r.close = append(r.close, r.Parent)
		break
	}
	return r, nil
}

// ReadFile returns the content of a raw image; at most limit bytes.
func (s *Set) ReadFile(k *Kind, key uint64, limit int64) ([]byte, error) {
	f, err := s.fsys.Open(k.FileName(key))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(f, limit+1)); err != nil || n > limit {
		return nil, errors.Join(err, &FormatError{File: k.FileName(key), Offset: limit, Err: ErrTooLarge})
	}
	return b.Bytes(), nil
}
