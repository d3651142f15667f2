package vmi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
)

// ErrFormat is wrapped by Open's error when no registered source knows the input.
var ErrFormat = errors.New("not a guest memory image")

// ErrTruncated is wrapped by the error of opening a dump whose headers promise
// more bytes than the file has.
var ErrTruncated = errors.New("truncated")

// Options tells Open what the caller needs. The zero value, and nil, open read-only.
type Options struct {
	Writable bool         // fail unless the guest can be written to
	Logger   *slog.Logger // nil: no log
}

// Log returns the logger to use, never nil. o may be nil.
func (o *Options) Log() *slog.Logger {
	if o == nil || o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// Source is one way to reach guest memory, registered by the package that
// implements it.
type Source struct {
	Name string // short: "elf core", "raw RAM"

	// Scheme, if not empty, is what stands before the colon: "qmp" for
	// "qmp:/run/vm.sock". Such a source is never tried on a plain path.
	Scheme string

	// Sniff says whether the first bytes of a file (up to 4096; fewer if the file
	// is shorter) and its size look like this source's. Unused with a Scheme.
	Sniff func(head []byte, size int64) bool

	// SniffPath, if set, is asked before any content is looked at: is the file, or
	// directory, this source's by where it is or by what lies beside it? Such a
	// source need not have a Sniff.
	SniffPath func(path string, dir bool) bool

	// Priority orders sources whose Sniff accepts: higher first. Raw RAM, which
	// accepts anything page-aligned, is lowest.
	Priority int

	// Params says that Open understands "PATH?KEY=VALUE"; see SplitPath. Paths
	// with parameters are refused for all other file sources.
	Params bool

	// Open opens what follows the scheme, or the path.
	Open func(ctx context.Context, arg string, o *Options) (Image, error)
}

var registry struct {
	sync.Mutex
	sources []Source
}

// Register makes a source known to Open. It is called from init functions.
func Register(s Source) {
	registry.Lock()
	defer registry.Unlock()
	registry.sources = append(registry.sources, s)
}

// Open opens a guest by the string that the programs take with -g: "qmp:SOCKET",
// "pid:PID", or the path of a file whose content decides. A raw RAM file may need
// parameters after a question mark, as its package says: "ram?below4g=2G". The
// error is one line that names the input; errors.Is finds fs.ErrNotExist,
// fs.ErrPermission, ErrFormat and ErrTruncated in it. Open never falls back from
// one target to another.
func Open(ctx context.Context, guest string, o *Options) (Image, error) {
	registry.Lock()
	sources := registry.sources
	registry.Unlock()
	if len(sources) == 0 {
		return nil, fmt.Errorf("open %q: no memory source is linked in (import _ %q)",
			guest, "github.com/ovmigrate/ovmigrate/vmi/sources")
	}
	if scheme, arg, ok := strings.Cut(guest, ":"); ok && !strings.ContainsAny(scheme, "/.") {
		for _, s := range sources {
			if s.Scheme == scheme {
				return s.Open(ctx, arg, o)
			}
		}
	}
	return openFile(ctx, sources, guest, o)
}

// SplitPath splits "PATH?KEY=VALUE&KEY=VALUE". A file whose name has a question
// mark is meant as it is: the string is split only if no such file exists.
func SplitPath(s string) (path string, params url.Values, err error) {
	i := strings.LastIndexByte(s, '?')
	if i < 0 {
		return s, nil, nil
	}
	if _, err := os.Stat(s); err == nil {
		return s, nil, nil
	}
	params, err = url.ParseQuery(s[i+1:])
	if err != nil {
		return "", nil, fmt.Errorf("open %s: parameters: %w", s, err)
	}
	return s[:i], params, nil
}

func openFile(ctx context.Context, sources []Source, guest string, o *Options) (Image, error) {
	path, params, err := SplitPath(guest)
	if err != nil {
		return nil, err
	}
	best := byPath(sources, path)
	if best == nil {
		head, size, err := readHead(path)
		if err != nil {
			return nil, err
		}
		best = byContent(sources, head, size)
		if best == nil && len(params) > 0 {
			// What is in the first page of an arm64 guest's RAM is any page of a
			// process. Who says how RAM lies in the file says that it is RAM.
			best = byContent(sources, nil, size)
		}
		if best == nil {
			return nil, fmt.Errorf("open %s: %w (%d bytes)", path, ErrFormat, size)
		}
	}
	if len(params) > 0 && !best.Params {
		return nil, fmt.Errorf("open %s: a file of format %q takes no parameters", guest, best.Name)
	}
	return best.Open(ctx, guest, o)
}

func byPath(sources []Source, path string) *Source {
	st, err := os.Stat(path)
	if err != nil || !st.IsDir() && !st.Mode().IsRegular() {
		return nil
	}
	for i := range sources {
		if s := &sources[i]; s.SniffPath != nil && s.SniffPath(path, st.IsDir()) {
			return s
		}
	}
	return nil
}

func byContent(sources []Source, head []byte, size int64) (best *Source) {
	for i := range sources {
		s := &sources[i]
		if s.Scheme != "" || s.Sniff == nil || !s.Sniff(head, size) {
			continue
		}
		if best == nil || s.Priority > best.Priority {
			best = s
		}
	}
	return best
}

func readHead(path string) ([]byte, int64, error) {
	// Opening a FIFO or a socket blocks or fails with an errno that says nothing.
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0, &fs.PathError{Op: "open", Path: path, Err: errors.Unwrap(err)}
	}
	switch m := st.Mode(); {
	case m&os.ModeSocket != 0:
		return nil, 0, fmt.Errorf("open %s: is a socket; write qmp:%s for a QMP socket", path, path)
	case m.IsDir():
		return nil, 0, fmt.Errorf("open %s: is a directory", path)
	case !m.IsRegular():
		return nil, 0, fmt.Errorf("open %s: not a regular file", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	head := make([]byte, PageSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	return head[:n], st.Size(), nil
}
