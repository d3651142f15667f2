// Guest builds and boots the Debian guests that ovmigrate is tested with.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

const usage = `usage:
  guest build [SUITE...]                       build images (all suites) in $OVM_CACHE or the user's cache
  guest run SUITE -dir DIR [flags]             boot; Ctrl-C stops it (guest run -h for the flags)
  guest run SUITE -dir DIR -daemon [flags]     boot in the background; guest stop ends it
  guest exec -dir DIR [-env N=V] [-C D] [-cgroup C] -- CMD...   run; streams and exit status are the command's
  guest spawn -dir DIR [-out FILE] [-cgroup C] -- CMD...  start detached; prints the process id
  guest put -dir DIR [-mode OCTAL] PATH < FILE
  guest get -dir DIR PATH > FILE
  guest stop -dir DIR
  guest clean                                  remove all images from the cache
`

// exitCode is an error that ends the program with a status and no message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

var commands = map[string]func(ctx context.Context, args []string) error{
	"build": build, "run": run, "exec": execute, "spawn": spawn, "put": put, "get": get, "stop": stop, "clean": clean,
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	err := commands[os.Args[1]](ctx, os.Args[2:])
	var code exitCode
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, args []string) (err error) {
	if len(args) == 0 {
		args = testvm.Suites()
	}
	// Debootstrap mostly waits for one download or one processor.
	errs := make(chan error, len(args))
	for _, suite := range args {
		go func() {
			img, err := testvm.Build(ctx, suite, os.Stderr)
			if err == nil {
				fmt.Println(img.Disk)
			}
			errs <- err
		}()
	}
	for range args {
		err = errors.Join(err, <-errs)
	}
	return err
}

func clean(context.Context, []string) error { return testvm.Clean() }
