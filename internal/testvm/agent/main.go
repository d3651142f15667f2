// The agent runs in test guests only: it gives a test a way to start programs and
// to move files. ovmigrate itself never talks to it.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm/proto"
)

const portName = "ovm.agent"

func main() {
	path, err := findPort(10 * time.Second)
	if err != nil {
		fatal(err)
	}
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		fatal(fmt.Errorf("%s: %w", path, err))
	}
	fatal(proto.Serve(port(fd), handle))
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "ovm agent:", err)
	time.Sleep(200 * time.Millisecond) // init starts us again at once
	os.Exit(1)
}

// findPort waits for the virtio-serial port named portName.
func findPort(patience time.Duration) (string, error) {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == portName {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(n))), nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no virtio-serial port %q", portName)
		}
	}
}

// port does plain blocking reads and writes: the driver reports a hang-up to poll
// whenever the host side is away, which makes Go's poller spin.
type port int

func (p port) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(int(p), b)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, err
		case n == 0: // nobody connected yet
			time.Sleep(20 * time.Millisecond)
		default:
			return n, nil
		}
	}
}

func (p port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := syscall.Write(int(p), b[done:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}
