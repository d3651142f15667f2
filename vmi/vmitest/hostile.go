package vmitest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// hostileTime and hostileMemory bound what opening and reading a damaged file may take.
const (
	hostileTime   = 5 * time.Second
	hostileMemory = 128 << 20
)

// Damaged opens damaged versions of a good file of a memory source, which the caller
// has made and which is read back first, and reads all they have: cut off, with bits
// flipped, empty, all zeros, all ones, repeated. Each must open or fail, and each read
// succeed or fault, with an error, within 5 s and with bounded memory. name is what the
// file is to be called. Companion files may lie in dir beside it.
func Damaged(t *testing.T, dir, name string, good []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	try := func(what string, b []byte) (opened bool) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), hostileTime)
		defer cancel()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin := time.Now()
		m, err := vmi.Open(ctx, path, nil)
		if err == nil {
			readAll(t, what, m)
			m.Close()
		} else if err.Error() == "" {
			t.Errorf("%s: an error without words", what)
		}
		runtime.ReadMemStats(&after)
		if d := time.Since(begin); d > hostileTime {
			t.Errorf("%s: %v", what, d)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > hostileMemory {
			t.Errorf("%s: %d MiB of memory", what, n>>20)
		}
		return err == nil
	}
	if !try("good", good) {
		t.Fatalf("%s: the good file does not open", name)
	}
	for what, b := range map[string][]byte{
		"empty": {}, "one byte": good[:1], "all zeros": make([]byte, len(good)), "all ones": fill(len(good), 0xff),
	} {
		if try(what, b) && len(b) < 4096 {
			t.Errorf("%s opens", what)
		}
	}
	try("twice", append(append([]byte(nil), good...), good...))
	rng := rand.New(rand.NewPCG(uint64(len(good)), 1))
	for range 40 {
		try("cut", good[:rng.IntN(len(good))])
	}
	for i := range 150 {
		b := append([]byte(nil), good...)
		for range 1 + i%4 {
			at := rng.IntN(len(b))
			if i%2 == 0 {
				at = rng.IntN(min(len(b), 512)) // headers
			}
			switch i % 3 {
			case 0:
				b[at] ^= 1 << rng.IntN(8)
			case 1:
				b[at] = 0xff
			case 2: // a number becomes another number in the file: loops
				copy(b[at:], good[rng.IntN(len(b)-8):][:8])
			}
		}
		try(fmt.Sprintf("damage %d", i), b)
	}
}

func fill(n int, c byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = c
	}
	return b
}

// readAll reads the beginning and the end of each range, and some of what is between.
func readAll(t *testing.T, what string, m vmi.Memory) {
	t.Helper()
	p := make([]byte, 2*vmi.PageSize)
	last := vmi.Phys(0)
	for i, r := range m.Ranges() {
		if r.Len() == 0 || r.Start < last {
			t.Errorf("%s: ranges are not sorted and disjoint: %v", what, m.Ranges())
			return
		}
		last = r.End
		if i > 1000 {
			continue
		}
		for _, a := range []vmi.Phys{r.Start, r.Start + vmi.Phys(r.Len()/2), r.End - 1} {
			if n, err := m.ReadPhys(p, a); (n < len(p)) != (err != nil) {
				t.Errorf("%s: %d bytes at %#x, %v", what, n, uint64(a), err)
			}
		}
	}
}
