package kernel_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// TestHostileObjects reads slab caches, zones, counters and IPC objects from memory
// that lies. Nothing may panic or run away; errors are fine.
func TestHostileObjects(t *testing.T) {
	eachZoo(t, func(t *testing.T, z *zoo) {
		out, err := z.vm.Exec(t.Context(), "sh", "-c", "ipcmk -M 100000 && ipcmk -S 30 && ipcmk -Q")
		require.NoError(t, err, "%s", out)
		mem, err := vmi.Open(t.Context(), z.vm.RAMPath(), nil)
		require.NoError(t, err)
		defer mem.Close()
		tourLies(t, mem)
	})
}

func tourLies(t *testing.T, mem vmi.Memory) {
	const seed = 1
	l := &liar{Memory: struct{ vmi.Memory }{mem}, r: rand.New(rand.NewPCG(seed, seed))}
	k, err := kernel.Open(t.Context(), l, nil)
	require.NoError(t, err)
	task, err := k.Task(1)
	require.NoError(t, err)
	ipc, err := task.IPC()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	calls, failed := 0, 0
	for _, one := range []int{20000, 2000, 200, 20} {
		for round := 0; round < 20 && ctx.Err() == nil; round++ {
			l.on, l.one = true, one
			c, f := tourObjects(k, ipc, task.Addr)
			calls, failed = calls+c, failed+f
		}
	}
	require.NotZero(t, failed)
	t.Logf("%d calls, %d failed", calls, failed)
}

func tourObjects(k *kernel.Kernel, ipc *kernel.IPCNamespace, object kernel.Addr) (calls, failed int) {
	try := func(err error) bool {
		calls++
		if err != nil {
			failed++
		}
		return err == nil
	}
	for c, err := range k.SlabCaches() {
		if try(err) {
			c.FlagNames()
			_, err := c.Info()
			try(err)
		}
	}
	_, err := k.SlabOf(object)
	try(err)
	for z, err := range k.Zones() {
		if !try(err) {
			continue
		}
		_, err := z.Free()
		try(err)
		_, err = z.FreeByType()
		try(err)
		_, err = z.Stats()
		try(err)
	}
	_, err = k.VMStat()
	try(err)
	_, err = k.MemInfo()
	try(err)
	for s, err := range ipc.SharedMemory() {
		if try(err) {
			_, err := s.Content()
			try(err)
		}
	}
	for s, err := range ipc.Semaphores() {
		if try(err) {
			_, err := s.Otime()
			try(err)
		}
	}
	for q, err := range ipc.MsgQueues() {
		if try(err) {
			_, err := sent(q.Messages())
			try(err)
		}
	}
	for q, err := range ipc.MQueues() {
		if try(err) {
			_, err := sent(q.Messages())
			try(err)
		}
	}
	return calls, failed
}
