// Command newcheck shows what a check takes that nobody has thought of: it lists the
// cryptographic algorithms that a Linux guest's kernel knows, as /proc/crypto does in the
// guest, from outside its virtual machine. The library has no helper for these. It
// needs none: name the structure's members and the list's head, and the kernel's own type
// information says where they are, whatever the kernel.
//
//	newcheck -g qmp:/run/vm.sock
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// The check, in 20 lines.

type cryptoAlg struct {
	Name     [128]byte `k:"cra_name"`
	Driver   [128]byte `k:"cra_driver_name"`
	Priority int       `k:"cra_priority"`
}

var cryptoAlgLayout = kernel.LayoutOf[cryptoAlg]("crypto_alg")

func cryptoAlgs(w io.Writer, k *kernel.Kernel) error {
	head, err := k.Symbol("crypto_alg_list")
	if err != nil {
		return err
	}
	for alg, err := range cryptoAlgLayout.List(k, head, "cra_list") {
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%-40s %-40s %5d\n", text(alg.Name[:]), text(alg.Driver[:]), alg.Priority)
	}
	return nil
}

// text is what stands in a char array before its NUL.
func text(b []byte) []byte {
	b, _, _ = bytes.Cut(b, []byte{0})
	return b
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("newcheck: ")
	guest := flag.String("g", "", "the `GUEST`: qmp:SOCKET, pid:PID or a file")
	flag.Parse()
	if *guest == "" || flag.NArg() > 0 {
		log.Fatal("usage: newcheck -g GUEST")
	}
	if err := run(context.Background(), os.Stdout, *guest); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, w io.Writer, guest string) error {
	mem, err := vmi.Open(ctx, guest, nil)
	if err != nil {
		return err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return err
	}
	return cryptoAlgs(w, k)
}
