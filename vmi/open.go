package vmi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// ErrFormat is wrapped by Open's error when no registered source knows the input.
var ErrFormat = errors.New("not a guest memory image")

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

	// Priority orders sources whose Sniff accepts: higher first. Raw RAM, which
	// accepts anything page-aligned, is lowest.
	Priority int

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
// "pid:PID", or the path of a file whose content decides. The error is one line
// that names the input; errors.Is finds fs.ErrNotExist, fs.ErrPermission and
// ErrFormat in it. It never falls back from one target to another.
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

func openFile(ctx context.Context, sources []Source, path string, o *Options) (Image, error) {
	head, size, err := readHead(path)
	if err != nil {
		return nil, err
	}
	var best *Source
	for i := range sources {
		s := &sources[i]
		if s.Scheme != "" || s.Sniff == nil || !s.Sniff(head, size) {
			continue
		}
		if best == nil || s.Priority > best.Priority {
			best = s
		}
	}
	if best == nil {
		return nil, fmt.Errorf("open %s: %w (%d bytes)", path, ErrFormat, size)
	}
	return best.Open(ctx, path, o)
}

func readHead(path string) ([]byte, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		if st.Mode()&os.ModeSocket != 0 {
			return nil, 0, fmt.Errorf("open %s: is a socket; write qmp:%s for a QMP socket", path, path)
		}
		return nil, 0, fmt.Errorf("open %s: not a regular file", path)
	}
	head := make([]byte, PageSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	return head[:n], st.Size(), nil
}
