package main
import "github.com/ovmigrate/ovmigrate/kernel"
func cgroupPath(t *kernel.Task) (string, error) { return "", nil }
