// Package newfile writes files that are whole or not there.
package newfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Write calls f with a new empty file in the directory of path and, when f returns
// nil, brings the file to disk and gives it the name path, in the place of the
// regular file that had it. In all other cases the new file is removed and path is
// as it was. Only the owner may read the file: memory holds secrets. f must not
// close it.
func Write(path string, f func(*os.File) error) (err error) {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("write %s: exists, and is no regular file", path)
	}
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err := f(file); err != nil {
		return err
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir brings the names in a directory to disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
