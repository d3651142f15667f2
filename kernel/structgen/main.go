// Command structgen writes Go structs for C structures of the kernel, to be read
// with a [kernel.Layout].
//
// A list names structures and the members that a program wants, one structure a
// line; names that differ between kernels are separated by "|":
//
//	# structure   members
//	super_block   s_list s_id s_magic s_type.name
//	task_struct   pid comm __state|state
//
// The type of each Go field is chosen so that it fits on all kernels whose type
// information is given; a member that some of them lack becomes optional, with a
// comment that names them, or the begin of their names, and one that says which have it
// under another name. Where a member lies is not written down: that is looked
// up in each guest at run time. In a Go file:
//
//	//go:generate go run github.com/ovmigrate/ovmigrate/kernel/structgen -btf DIR -o structs.go structs.list
//
// DIR is a directory of BTF files, such as kernels have in /sys/kernel/btf/vmlinux, or
// the corpus of Debian's kernels that is part of this module's source,
// kernel/testdata/btf/corpus.tar.zst. It knows only structures that this module reads.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "structgen:", err)
		}
		os.Exit(1)
	}
}

func run(args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("structgen", flag.ContinueOnError)
	fs.SetOutput(stderr)
	btf := fs.String("btf", "/sys/kernel/btf/vmlinux", "BTF `file`, a directory of them, or a corpus (.tar.zst)")
	out := fs.String("o", "", "Go `file` to write (default: standard output)")
	pkg := fs.String("package", os.Getenv("GOPACKAGE"), "`name` of its package")
	fs.Usage = func() {
		fmt.Fprintf(stderr, "usage: structgen [flags] LIST\n")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		fs.Usage()
		return errors.New("give one list of structures")
	}
	if *pkg == "" {
		return errors.New("give -package; go generate sets it")
	}
	kernels, err := readKernels(*btf)
	if err != nil {
		return err
	}
	list, err := os.Open(fs.Arg(0))
	if err != nil {
		return err
	}
	defer list.Close()
	structs, err := parseList(list, filepath.Base(fs.Arg(0)))
	if err != nil {
		return err
	}
	source, err := generate(*pkg, filepath.Base(fs.Arg(0)), structs, kernels)
	if err != nil {
		return err
	}
	if *out == "" {
		_, err = os.Stdout.Write(source)
		return err
	}
	return os.WriteFile(*out, source, 0o644)
}
