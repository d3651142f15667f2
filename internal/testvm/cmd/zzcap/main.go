package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

func must(err error) {
	if err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
}

func main() {
	dir, out := os.Args[1], os.Args[2]
	ctx, cancel := context.WithTimeout(context.Background(), 9*time.Minute)
	defer cancel()
	os.MkdirAll(out, 0o755)
	begin := time.Now()
	a, err := testvm.Attach(ctx, dir+"/agent.sock")
	must(err)
	fmt.Println("ready", time.Since(begin))
	for _, f := range os.Args[3:] {
		b, err := os.ReadFile(f)
		must(err)
		must(a.Put(ctx, "/root/"+filepath.Base(f), bytes.NewReader(b), 0o644))
	}
	_, err = a.StartProcess(ctx, testvm.Process{Argv: []string{"python3", "/root/zoo.py"}, Stdout: "/root/zoo.log", Dir: "/root"})
	must(err)
	for {
		time.Sleep(time.Second)
		b, _ := a.Exec(ctx, "cat", "/root/zoo.log")
		if strings.Contains(string(b), "zoo ready") {
			os.WriteFile(out+"/zoo.log", b, 0o644)
			break
		}
		must(ctx.Err())
	}
	fmt.Println("zoo", time.Since(begin))
	for _, c := range [][2]string{
		{"kallsyms", "cat /proc/kallsyms"}, {"btf", "cat /sys/kernel/btf/vmlinux"}, {"dmesg", "dmesg"},
		{"modules", "cat /proc/modules"}, {"info", "cat /proc/iomem /proc/version /proc/cmdline /proc/cpuinfo /sys/kernel/vmcoreinfo /proc/meminfo"},
		{"ps", "ps -eLf"}, {"procdump.json", "python3 /root/procdump.py"}, {"pagemap.txt", "python3 /root/pagemap.py"}, {"dump.json", "python3 /root/dump.py"},
	} {
		b, err := a.Exec(ctx, "sh", "-c", c[1])
		if err != nil {
			fmt.Println(c[0], err)
		}
		must(os.WriteFile(out+"/"+c[0], b, 0o644))
		fmt.Println(c[0], len(b), time.Since(begin))
	}
}
