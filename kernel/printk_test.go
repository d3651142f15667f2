package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel/locate"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/kernel/types"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// madeUp is a kernel of a few structures in memory that is mapped at madeUpBase.
type madeUp struct {
	k   *Kernel
	mem *vmitest.Mem
}

const (
	madeUpBase = Addr(0xffff888000000000)
	madeUpSize = 1 << 20
)

// newMadeUp returns memory with the symbols given, and types of a real kernel.
func newMadeUp(t testing.TB, src types.Source, syms map[string]Addr) *madeUp {
	t.Helper()
	var list []symbols.Symbol
	for name, a := range syms {
		list = append(list, symbols.Symbol{Name: name, Addr: uint64(a), Type: 'D'})
	}
	mem := vmitest.New(vmi.Range{Start: 0, End: madeUpSize})
	return &madeUp{mem: mem, k: &Kernel{
		mem: mem, types: src, guest: &locate.Guest{Symbols: symbols.New(list)},
		tables: paging.Tables{Mem: mem, Root: madeUpSize - vmi.PageSize, Levels: 4},
		linear: []linear{{madeUpBase, madeUpBase + madeUpSize, ^uint64(madeUpBase) + 1}},
	}}
}

// put stores an integer in a member of a structure.
func (m *madeUp) put(t testing.TB, a Addr, cname, member string, v uint64) {
	t.Helper()
	c, err := m.k.types.Struct(cname)
	require.NoError(t, err)
	f, err := c.Lookup(member)
	require.NoError(t, err)
	size, err := f.Type.SizeOf()
	require.NoError(t, err)
	var b [8]byte
	at := vmi.Phys(a - madeUpBase + Addr(f.BitOffset/8))
	_, err = m.mem.ReadPhys(b[:size], at)
	require.NoError(t, err)
	old := binary.LittleEndian.Uint64(b[:])
	if f.BitSize > 0 {
		mask := uint64(1)<<f.BitSize - 1
		v = old&^(mask<<(f.BitOffset%8)) | v&mask<<(f.BitOffset%8)
	}
	binary.LittleEndian.PutUint64(b[:], v)
	m.mem.Set(at, b[:size])
}

// Places in the made-up ring.
const (
	prbAt   = madeUpBase + 0x1000
	ringAt  = madeUpBase + 0x2000
	descsAt = madeUpBase + 0x3000
	infosAt = madeUpBase + 0x8000
	textAt  = madeUpBase + 0x10000

	ringBits, textBits = 3, 10 // 8 records, 1 KiB
)

func newLog(t testing.TB, src types.Source) *madeUp {
	m := newMadeUp(t, src, map[string]Addr{"prb": prbAt})
	m.mem.SetUint64(vmi.Phys(prbAt-madeUpBase), uint64(ringAt))
	m.put(t, ringAt, "printk_ringbuffer", "desc_ring.count_bits", ringBits)
	m.put(t, ringAt, "printk_ringbuffer", "desc_ring.descs", uint64(descsAt))
	m.put(t, ringAt, "printk_ringbuffer", "desc_ring.infos", uint64(infosAt))
	m.put(t, ringAt, "printk_ringbuffer", "text_data_ring.size_bits", textBits)
	m.put(t, ringAt, "printk_ringbuffer", "text_data_ring.data", uint64(textAt))
	return m
}

// record writes the record seq with its text at the positions begin to next.
func (m *madeUp) record(t testing.TB, seq, state, begin, next uint64, text string) {
	descSize, err := printkDescLayout.Size(m.k)
	require.NoError(t, err)
	infoSize, err := printkInfoLayout.Size(m.k)
	require.NoError(t, err)
	i := int(seq % (1 << ringBits))
	desc, info := descsAt.Add(i*descSize), infosAt.Add(i*infoSize)
	m.put(t, desc, "prb_desc", "state_var.counter", state<<62|seq)
	m.put(t, desc, "prb_desc", "text_blk_lpos.begin", begin)
	m.put(t, desc, "prb_desc", "text_blk_lpos.next", next)
	m.put(t, info, "printk_info", "seq", seq)
	m.put(t, info, "printk_info", "ts_nsec", 1000*seq)
	m.put(t, info, "printk_info", "text_len", uint64(len(text)))
	m.put(t, info, "printk_info", "level", seq%8)
	m.put(t, info, "printk_info", "flags", 2)
	at := begin
	if begin>>textBits != (next-1)>>textBits {
		at = next &^ (1<<textBits - 1)
	}
	m.mem.Set(vmi.Phys(textAt-madeUpBase)+vmi.Phys(at%(1<<textBits))+8, []byte(text))
}

// corpusTypes returns the types of one kernel of the corpus.
func corpusTypes(t testing.TB, name string) types.Source {
	t.Helper()
	for _, k := range loadCorpus(t) {
		if k.Name() == name {
			src, err := types.ParseBTF(k.BTF)
			require.NoError(t, err)
			return src
		}
	}
	t.Fatalf("no kernel %s in the corpus", name)
	return nil
}

func (m *madeUp) logText() (all []string) {
	for r, err := range m.k.Log() {
		if err != nil {
			all = append(all, err.Error())
			continue
		}
		all = append(all, fmt.Sprintf("%d %d %v %s", r.Seq, r.Level, r.Time, r.Text))
	}
	return all
}

// The shapes of records that a guest shows rarely: wrapped ones, empty lines, lost text,
// records that are being written.
func TestLogShapes(t *testing.T) {
	for _, name := range []string{"bullseye-cloud-amd64", "sid-cloud-amd64"} {
		m := newLog(t, corpusTypes(t, name))
		m.put(t, ringAt, "printk_ringbuffer", "desc_ring.tail_id.counter", 10)
		m.record(t, 10, descFinalized, 0x510, 0x528, "first")
		m.record(t, 11, descFinalized, 0x528, 0x540, "second")
		m.record(t, 12, descFinalized, 0x7f0, 0x820, "begins at the start") // of the buffer
		m.record(t, 13, descFinalized, emptyLog, emptyLog, "")
		m.record(t, 14, descFinalized, dataless, dataless, "")
		m.record(t, 15, descReusable, 0x828, 0x840, "gone")
		m.record(t, 16, descFinalized, 0xbe0, 0xc00, "ends at the end")
		m.record(t, 17, 1, 0xc40, 0xc58, "not complete")
		require.Equal(t, []string{
			"10 2 10µs first", "11 3 11µs second", "12 4 12µs begins at the start", "13 5 13µs ",
			"kernel log: 1 messages from number 14 on are lost",
			"kernel log: 1 messages from number 15 on are lost",
			"16 0 16µs ends at the end",
		}, m.logText(), name)

		m.record(t, 11, descFinalized, 0x528, 0x520, "ends before it begins")
		var corrupt *PathError
		for _, err := range m.k.Log() {
			if err != nil {
				require.ErrorAs(t, err, &corrupt)
				require.ErrorIs(t, err, ErrCorrupt)
			}
		}
		require.NotNil(t, corrupt)
		m.put(t, ringAt, "printk_ringbuffer", "desc_ring.count_bits", 60)
		require.Len(t, m.logText(), 1)
	}
}

// FuzzLog reads the log from memory that was changed anywhere.
func FuzzLog(f *testing.F) {
	src := corpusTypes(f, "trixie-cloud-amd64")
	f.Add([]byte{0x20, 0x00, 0, 0xff, 0x30, 0x08, 1, 3})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, changes []byte) {
		m := newLog(t, src)
		m.put(t, ringAt, "printk_ringbuffer", "desc_ring.tail_id.counter", 10)
		for seq := uint64(10); seq < 18; seq++ {
			m.record(t, seq, descFinalized, seq*32, seq*32+32, "some text")
		}
		m.change(changes)
		start, n := time.Now(), 0
		for _, err := range m.k.Log() {
			var lost *LostRecordError
			if err != nil && !errors.As(err, &lost) {
				break
			}
			if n++; n > 4<<ringBits && time.Since(start) > 5*time.Second {
				t.Fatal("does not end")
			}
		}
	})
}

// change overwrites bytes: each four bytes of changes are a place in the first 64
// KiB beyond prbAt (two), how many bytes less one, and a value.
func (m *madeUp) change(changes []byte) {
	for ; len(changes) >= 4; changes = changes[4:] {
		at := vmi.Phys(prbAt-madeUpBase) + vmi.Phys(binary.BigEndian.Uint16(changes)) - 0x1000
		b := make([]byte, changes[2]%8+1)
		for i := range b {
			b[i] = changes[3]
		}
		m.mem.Set(at, b)
	}
}

// FuzzModules reads modules and their symbols from memory that was changed anywhere.
func FuzzModules(f *testing.F) {
	src := corpusTypes(f, "trixie-cloud-amd64")
	const (
		modulesAt = madeUpBase + 0x1000
		moduleAt  = madeUpBase + 0x2000
		kallsyms  = madeUpBase + 0x3000
		symtab    = madeUpBase + 0x4000
		strtab    = madeUpBase + 0x5000
		typetab   = madeUpBase + 0x6000
		memory    = madeUpBase + 0x8000
	)
	f.Add([]byte{0x20, 0x00, 0, 0xff, 0x30, 0x08, 1, 3})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, changes []byte) {
		m := newMadeUp(t, src, map[string]Addr{"modules": modulesAt})
		list, err := m.k.offsetOf("module", "list")
		require.NoError(t, err)
		m.mem.SetUint64(vmi.Phys(modulesAt-madeUpBase), uint64(moduleAt.Add(list)))
		m.mem.SetUint64(vmi.Phys(moduleAt-madeUpBase)+vmi.Phys(list), uint64(modulesAt))
		name, err := m.k.offsetOf("module", "name")
		require.NoError(t, err)
		m.mem.Set(vmi.Phys(moduleAt-madeUpBase)+vmi.Phys(name), []byte("fuzzed"))
		src, err := m.k.offsetOf("module", "source_list")
		require.NoError(t, err)
		m.mem.SetUint64(vmi.Phys(moduleAt-madeUpBase)+vmi.Phys(src), uint64(moduleAt.Add(src)))
		m.put(t, moduleAt, "module", "kallsyms", uint64(kallsyms))
		m.put(t, moduleAt, "module", "mem[0].base", uint64(memory))
		m.put(t, moduleAt, "module", "mem[0].size", 0x1000)
		m.put(t, kallsyms, "mod_kallsyms", "symtab", uint64(symtab))
		m.put(t, kallsyms, "mod_kallsyms", "num_symtab", 8)
		m.put(t, kallsyms, "mod_kallsyms", "strtab", uint64(strtab))
		m.put(t, kallsyms, "mod_kallsyms", "typetab", uint64(typetab))
		for i := range 8 {
			at := vmi.Phys(symtab-madeUpBase) + vmi.Phys(i*elfSymSize)
			m.mem.SetUint64(at, uint64(4*i+1))
			m.mem.SetUint64(at+8, uint64(memory)+uint64(32*i))
			m.mem.Set(vmi.Phys(strtab-madeUpBase)+vmi.Phys(4*i+1), []byte("sym\x00"))
			m.mem.Set(vmi.Phys(typetab-madeUpBase)+vmi.Phys(i), []byte("t"))
		}
		m.change(changes)
		for mod, err := range m.k.Modules() {
			if err != nil {
				continue
			}
			_, _ = mod.UsedBy()
			_, _ = mod.BuildID()
			_, _ = mod.Params()
			_, _, _ = mod.Version()
			if table, err := mod.Symbols(); err == nil && len(changes) == 0 {
				require.Equal(t, 8, table.Len())
			}
		}
		_, _, _ = m.k.SymbolAt(memory + 5)
		_, err = m.k.Symbol("sym [fuzzed]")
		if len(changes) == 0 {
			require.NoError(t, err)
		}
	})
}
