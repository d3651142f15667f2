package criuimg_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"

	"github.com/ovmigrate/ovmigrate/criuimg"
)

// A set is written to one side and appears whole. Verify then tells what stock
// CRIU would stumble over: this one is far from complete.
func Example() {
	base, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(base)
	d, err := criuimg.Create(filepath.Join(base, "images"))
	if err != nil {
		panic(err)
	}
	defer d.Abort()

	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	check(d.Write(criuimg.Inventory, 0, &inventory.InventoryEntry{ImgVersion: proto.Uint32(2), FdinfoPerId: proto.Bool(true)}))
	pid := proto.Uint32(42)
	check(d.Write(criuimg.Pstree, 0, &pstree.PstreeEntry{Pid: pid, Ppid: proto.Uint32(0), Pgid: pid, Sid: pid, Threads: []uint32{42}}))

	w, err := d.Pages(criuimg.Pagemap, 42)
	check(err)
	check(w.WritePages(0x400000, make([]byte, 3*criuimg.PageSize)))
	check(w.Close())
	check(d.Commit())

	s, err := criuimg.OpenDir(d.Path())
	check(err)
	for _, f := range s.Images() {
		fmt.Println(f.Name, f.Kind)
	}
	for _, p := range s.Verify() {
		if p.Severity == criuimg.Error {
			fmt.Println(p)
		}
	}
	// Output:
	// inventory.img inventory.img
	// pagemap-42.img pagemap-%d.img
	// pages-1.img pages-%d.img
	// pstree.img pstree.img
	// error: core-42.img: missing: every thread has one
	// error: files.img: missing: executables and directories come from it
	// error: inventory.img: root_ids missing
}

// Payload follows the entry that announces it.
func ExampleEncoder_Payload() {
	var img bytes.Buffer
	e := criuimg.NewEncoder(&img, criuimg.PipesData)
	_ = e.Encode(&pipe_data.PipeDataEntry{PipeId: proto.Uint32(7), Bytes: proto.Uint32(5), Size: proto.Uint32(65536)})
	_ = e.Payload(strings.NewReader("hello"))
	if err := e.Close(); err != nil {
		fmt.Println(err)
	}

	d, err := criuimg.NewDecoder(&img, criuimg.PipesData)
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := d.Next()
	if err != nil {
		fmt.Println(err)
		return
	}
	var data bytes.Buffer
	_, _ = data.ReadFrom(d.Payload())
	fmt.Printf("pipe %d: %q\n", m.(*pipe_data.PipeDataEntry).GetPipeId(), &data)
	// Output: pipe 7: "hello"
}
