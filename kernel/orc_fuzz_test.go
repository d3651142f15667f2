package kernel

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel/locate"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/types"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// flat is guest memory of one piece.
type flat []byte

func (f flat) Ranges() []vmi.Range { return []vmi.Range{{Start: 0, End: vmi.Phys(len(f))}} }

func (f flat) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	if uint64(a) >= uint64(len(f)) {
		return 0, &vmi.FaultError{Addr: a, Len: len(p)}
	}
	n := copy(p, f[a:])
	if n < len(p) {
		return n, &vmi.FaultError{Addr: a, Len: len(p)}
	}
	return n, nil
}

// FuzzORC unwinds a stack of any contents by tables of any contents: unsorted,
// with frames that lie in themselves or lead round in circles.
func FuzzORC(f *testing.F) {
	const (
		base  = Addr(0xffffffff80000000)
		text  = base + 0x10000 // code, so far as the table says
		stack = base + 0x4000
		size  = 0x20000
	)
	seed := make([]byte, 0x200)
	for i := range 8 {
		binary.LittleEndian.PutUint32(seed[4*i:], uint32(text+Addr(16*i)-base)-uint32(4*i))
		copy(seed[32+6*i:], []byte{16, 0, 0xf0, 0xff, 0x15, 0x02})
	}
	f.Add(seed, uint8(8), uint16(0))
	f.Add([]byte{}, uint8(0), uint16(8))
	srcs := map[string]types.Source{}
	for _, c := range loadCorpus(f) {
		if c.Arch == "amd64" && c.Flavour == "cloud" {
			src, err := types.ParseBTF(c.BTF)
			require.NoError(f, err)
			srcs[c.Suite] = src
		}
	}
	require.Len(f, srcs, 4)
	f.Fuzz(func(t *testing.T, data []byte, n uint8, at uint16) {
		mem := make(flat, size)
		copy(mem, data)
		// What the fuzzer writes lies in the tables and on the stack.
		copy(mem[stack-base:stack-base+0x4000], data)
		for _, src := range srcs {
			k := &Kernel{
				mem: mem, types: src, guest: &locate.Guest{}, tables: paging.Tables{Mem: mem, Root: 0x8000},
				linear: []linear{{base, base + size, ^uint64(base) + 1}},
			}
			code := &kernelCode{k: k, listed: true, image: []codeRange{{text, base + size}}}
			for _, renumbered := range []bool{false, true} {
				u := &orcUnwinder{code, orcTable{ips: base, entries: base.Add(4 * int(n)), n: int(n), renumbered: renumbered}}
				tr := unwind(code, u, unwindState{
					ip: text + Addr(at), sp: stack + Addr(at), bp: stack + 0x100,
					stacks: []stackRange{{stack, stack + 0x4000}},
				})
				if len(tr.Frames) > maxFrames {
					t.Fatalf("%d frames", len(tr.Frames))
				}
			}
		}
	})
}
