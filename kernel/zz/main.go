package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel/locate"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

func main() {
	m, err := vmi.Open(context.Background(), os.Args[1], nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	t := time.Now()
	g, err := locate.Find(context.Background(), m, &locate.Options{Logger: slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	fmt.Println(time.Since(t), err)
	if err == nil {
		for _, s := range g.Found {
			fmt.Println(s)
		}
		fmt.Printf("%+v %v levels %d\n", g.ARM64, g.Arch, g.Levels)
	}
}
