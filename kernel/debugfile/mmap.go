package debugfile

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxFile bounds a file: a vmlinux with all debug information has 1 GB.
const maxFile = 16 << 30

// mapFile returns the content of a file, which is read as it is used: most of a
// vmlinux never is.
func mapFile(path string) (data []byte, unmap func() error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, nil, fmt.Errorf("%s: %w", path, ErrFormat)
	}
	if st.Size() == 0 {
		return nil, nil, fmt.Errorf("%s: %w: it is empty", path, ErrFormat)
	}
	data, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "mmap", Path: path, Err: err}
	}
	return data, func() error { return unix.Munmap(data) }, nil
}
