package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sendImages runs a shell command with the files of dir as a tar stream on its
// standard input. It fails unless the command has read them all and succeeded.
func sendImages(ctx context.Context, a *app, dir, command string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, a.stdout, a.stderr
	if a.json {
		cmd.Stdout = a.stderr
	}
	// Let it clean up: it may be a restore half done.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	written := make(chan error, 1)
	go func() {
		err := writeTar(w, dir)
		written <- errors.Join(err, w.Close())
	}()
	err = cmd.Wait()
	unread, ierr := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
	// Nobody will read what is still being written.
	r.Close()
	werr := <-written
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("the command that receives the images failed: %w", err)
	case errors.Is(werr, syscall.EPIPE), ierr == nil && unread > tarTrailer:
		return errors.New("the command that receives the images did not read them all")
	}
	return werr
}

// tarTrailer is what ends an archive, and what a reader may leave unread.
const tarTrailer = 1024

// writeTar writes the regular files in dir as a tar archive.
func writeTar(w io.Writer, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, e := range entries {
		if err := addFile(t, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return t.Close()
}

func addFile(t *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", path)
	}
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: filepath.Base(path), Mode: 0o600, Size: st.Size(), ModTime: st.ModTime(),
		Format: tar.FormatPAX,
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
