package kernel_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// scripted is guest memory that lies as the script says: four bytes a lie, which are
// how many words are told rightly before it, its kind and what it is made with.
type scripted struct {
	vmi.Memory
	script   []byte
	wait     int
	pointers [256]uint64 // the last that were seen
	seen     int
}

func (s *scripted) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	n, err := s.Memory.ReadPhys(p, a)
	for i := 0; i+8 <= n && len(s.script) >= 4; i += 8 {
		w := binary.LittleEndian.Uint64(p[i:])
		if w >= 0xffff800000000000 {
			s.pointers[s.seen%len(s.pointers)] = w
			s.seen++
		}
		if s.wait < int(binary.LittleEndian.Uint16(s.script)) {
			s.wait++
			continue
		}
		kind, arg := s.script[2], s.script[3]
		s.script, s.wait = s.script[4:], 0
		switch kind % 6 {
		case 0:
			w = uint64(arg)
		case 1:
			w = ^uint64(0) >> (arg % 64)
		case 2:
			w ^= 1 << (arg % 64)
		case 3:
			w += uint64(int64(int8(arg)) * 8)
		default:
			w = s.pointers[arg]
		}
		binary.LittleEndian.PutUint64(p[i:], w)
	}
	return n, err
}

// FuzzWalks reads all there is about some processes of a guest whose memory lies by a
// script. -ram FILE takes the guest from a dump.
func FuzzWalks(f *testing.F) {
	mem, err := vmi.Open(f.Context(), benchRAM(f), nil)
	require.NoError(f, err)
	f.Cleanup(func() { _ = mem.Close() })
	s := &scripted{Memory: struct{ vmi.Memory }{mem}}
	k, err := kernel.Open(f.Context(), s, nil)
	require.NoError(f, err)
	var tasks []*kernel.Task
	for t, err := range k.Tasks() {
		require.NoError(f, err)
		if !t.IsKernelThread() && len(tasks) < 16 {
			tasks = append(tasks, t)
		}
	}
	require.NotEmpty(f, tasks)
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{100, 0, 4, 1, 10, 0, 2, 3, 0, 2, 0, 0, 0, 0, 5, 5})
	f.Fuzz(func(t *testing.T, which uint8, script []byte) {
		*s = scripted{Memory: s.Memory, script: script}
		began := time.Now()
		tourTask(tasks[int(which)%len(tasks)])
		require.Less(t, time.Since(began), 5*time.Second)
	})
}
