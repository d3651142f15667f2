// Guest builds and boots the Debian guests that ovmigrate is tested with.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

const usage = `usage:
  guest build [SUITE|KERNEL...]                build images in $OVM_CACHE or the user's cache: what tests need,
                                               and all kernels with $OVM_KERNELS=all
  guest kernels                                list the kernels that -kernel takes
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
	"kernels": listKernels,
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

func build(ctx context.Context, args []string) error {
	suites := slices.DeleteFunc(slices.Clone(args), isKernel)
	kernels := slices.DeleteFunc(slices.Clone(args), func(a string) bool { return !isKernel(a) })
	if len(args) == 0 {
		suites = testvm.Suites()
		for _, k := range testvm.Kernels() {
			if k.Chosen() {
				kernels = append(kernels, k.Name)
			}
		}
	}
	// Debootstrap mostly waits for one download or one processor.
	errs := make(chan error, len(suites))
	for _, suite := range suites {
		go func() {
			img, err := testvm.Build(ctx, suite, os.Stderr)
			if err == nil {
				fmt.Println(img.Disk)
			}
			errs <- err
		}()
	}
	var err error
	for range suites {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return err
	}
	return testvm.BuildKernels(ctx, kernels, os.Stderr)
}

func isKernel(name string) bool {
	return slices.ContainsFunc(testvm.Kernels(), func(k testvm.Kernel) bool { return k.Name == name })
}

func listKernels(context.Context, []string) error {
	for _, k := range testvm.Kernels() {
		fmt.Printf("%-18s %s of %s, root of %s\n", k.Name, k.Package, k.Release, k.Suite)
	}
	return nil
}

func clean(context.Context, []string) error { return testvm.Clean() }
