package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// session is what all commands that talk to a running guest begin with.
func session(ctx context.Context, fl *flag.FlagSet, args []string) (*testvm.Agent, error) {
	dir := fl.String("dir", "", "directory of the guest")
	_ = fl.Parse(args)
	if *dir == "" {
		return nil, errors.New("-dir is needed")
	}
	return testvm.Attach(ctx, socketOf(*dir))
}

func execute(ctx context.Context, args []string) error {
	fl := flag.NewFlagSet("guest exec", flag.ExitOnError)
	var env list
	fl.Var(&env, "env", "NAME=VALUE to add (repeat)")
	wd := fl.String("C", "", "directory to run in")
	cgroup := fl.String("cgroup", "", "cgroup to run in, made if missing")
	vm, err := session(ctx, fl, args)
	if err != nil {
		return err
	}
	r, err := vm.Run(ctx, testvm.Cmd{
		Argv: fl.Args(), Env: env, Dir: *wd, Cgroup: *cgroup,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	switch {
	case err != nil:
		return err
	case r.Signal != 0:
		return exitCode(128 + r.Signal)
	case r.Code != 0:
		return exitCode(r.Code)
	}
	return nil
}

func spawn(ctx context.Context, args []string) error {
	fl := flag.NewFlagSet("guest spawn", flag.ExitOnError)
	var env list
	fl.Var(&env, "env", "NAME=VALUE to add (repeat)")
	wd := fl.String("C", "", "directory to run in")
	cgroup := fl.String("cgroup", "", "cgroup to run in, made if missing")
	in := fl.String("in", "", "file of the guest for standard input")
	out := fl.String("out", "", "file of the guest for standard output and error")
	vm, err := session(ctx, fl, args)
	if err != nil {
		return err
	}
	pid, err := vm.StartProcess(ctx, testvm.Process{
		Argv: fl.Args(), Env: env, Dir: *wd, Cgroup: *cgroup, Stdin: *in, Stdout: *out,
	})
	if err != nil {
		return err
	}
	fmt.Println(pid)
	return nil
}

func put(ctx context.Context, args []string) error {
	fl := flag.NewFlagSet("guest put", flag.ExitOnError)
	mode := fl.String("mode", "644", "permissions, octal")
	vm, err := session(ctx, fl, args)
	if err != nil {
		return err
	}
	m, err := strconv.ParseUint(*mode, 8, 9)
	if err != nil || fl.NArg() != 1 {
		return errors.New("usage: guest put -dir DIR [-mode OCTAL] PATH < FILE")
	}
	return vm.Put(ctx, fl.Arg(0), os.Stdin, os.FileMode(m))
}

func get(ctx context.Context, args []string) error {
	fl := flag.NewFlagSet("guest get", flag.ExitOnError)
	vm, err := session(ctx, fl, args)
	if err != nil {
		return err
	}
	if fl.NArg() != 1 {
		return errors.New("usage: guest get -dir DIR PATH > FILE")
	}
	return vm.Get(ctx, fl.Arg(0), os.Stdout)
}
