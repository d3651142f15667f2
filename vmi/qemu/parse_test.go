package qemu

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// What QEMU 7.2 prints for a pc with VGA, after the firmware has set up the
// windows below 1 MiB; shortened.
const mtreeText = `FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan
  0000000000000000-00000000000bffff (prio 0, ram): trap

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000 KVM
  00000000000cb000-00000000000cdfff (prio 0, ram): pc.ram @00000000000cb000 KVM
  00000000000e0000-00000000000effff (prio 1, rom): pc.bios @0000000000020000
  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000
  0000000140000000-0000000147ffffff (prio 0, ram): /objects/dimm 0

FlatView #2
 AS "cpu-smm-0", root: memory
  0000000000000000-00000000ffffffff (prio 0, ram): pc.ram
`

func TestMtree(t *testing.T) {
	view, err := parseMtree(strings.ReplaceAll(mtreeText, "\n", "\r\n"))
	require.NoError(t, err)
	require.Len(t, view, 10)
	blocks, err := ramBlocks(view, map[string]uint64{"pc.ram": 4 * gib, "dimm 0": 128 * mib})
	require.NoError(t, err)
	require.Equal(t, []block{
		{id: "pc.ram", phys: 0, off: 0, len: 3 * gib},
		{id: "pc.ram", phys: 4 * gib, off: 3 * gib, len: gib, probe: 4 * gib},
		{id: "dimm 0", phys: 5 * gib, off: 0, len: 128 * mib, probe: 5 * gib},
	}, blocks)

	_, err = ramBlocks(view, map[string]uint64{"pc.ram": 3 * gib})
	require.Error(t, err, "a piece exceeds the block")
	_, err = ramBlocks(view, map[string]uint64{"ram": 3 * gib})
	require.Error(t, err, "no RAM")
	_, err = parseMtree("FlatView #0\n")
	require.Error(t, err)
}

func FuzzMtree(f *testing.F) {
	f.Add(mtreeText)
	f.Add("FlatView\nAS \"memory\",\n0-ffffffffffffffff (prio 0, ram): pc.ram @ffffffffffffffff")
	f.Fuzz(func(t *testing.T, text string) {
		view, err := parseMtree(text)
		if err != nil {
			return
		}
		sizes := map[string]uint64{"pc.ram": 4 * gib, "dimm 0": 128 * mib}
		blocks, err := ramBlocks(view, sizes)
		if err != nil {
			return
		}
		for _, b := range blocks {
			if b.len == 0 || b.off > sizes[b.id] || b.probe < b.phys || b.probe-b.phys >= b.len {
				t.Fatalf("%+v", b)
			}
		}
	})
}

const registersText = `
CPU#1
RAX=0000000000000001 RBX=0000000000000002 RCX=0000000000000003 RDX=0000000000000004
RSI=0000000000000005 RDI=0000000000000006 RBP=0000000000000007 RSP=ffffc90000003ee0
R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b
R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=000000000000000f
RIP=ffffffff81b2a0f2 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 ffffffff 00c00000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 ffffffff 00c00000
FS =0000 00007f1122334455 ffffffff 00c00000
GS =0000 ffff88803ec00000 ffffffff 00c00000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007ffff7fe0000 CR3=0000000102e0a003 CR4=00370ef0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 
DR6=00000000ffff0ff0 DR7=0000000000000400
CCS=0000000000000000 CCD=0000000000000000 CCO=CLR
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000

CPU#0
EAX=00000001 EBX=00000000 ECX=00000000 EDX=00060fb1
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =f000 ffff0000 0000ffff 00009b00
`

func TestRegisters(t *testing.T) {
	cpus, err := parseRegisters(strings.ReplaceAll(registersText, "\n", "\r\n"))
	require.NoError(t, err)
	require.Equal(t, []vmi.CPU{
		{ID: 0, GPR: [16]uint64{0: 1, 2: 0x60fb1}, RIP: 0xfff0, RFLAGS: 2, CS: 0xf000, Known: vmi.KnownHalted},
		{
			ID: 1, GPR: [16]uint64{1, 3, 4, 2, 0xffffc90000003ee0, 7, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15},
			RIP: 0xffffffff81b2a0f2, RFLAGS: 0x246, CS: 0x10, SS: 0x18,
			CR0: 0x80050033, CR2: 0x7ffff7fe0000, CR3: 0x102e0a003, CR4: 0x370ef0, EFER: 0xd01,
			FSBase: 0x7f1122334455, GSBase: 0xffff88803ec00000, Halted: true,
			Known: vmi.KnownControl | vmi.KnownEFER | vmi.KnownHalted,
		},
	}, cpus)
	for _, bad := range []string{"", "CPU#0\n", "CPU#x\nRIP=0", "CPU#0\nCPU#1\nRIP=0", "PC=0000000040000000"} {
		_, err := parseRegisters(bad)
		require.Error(t, err, bad)
	}
}

func FuzzRegisters(f *testing.F) {
	f.Add(registersText)
	f.Fuzz(func(t *testing.T, text string) {
		cpus, err := parseRegisters(text)
		if err == nil && len(cpus) == 0 {
			t.Fatal("no processors and no error")
		}
	})
}

const mapsText = `55592039a000-5559203bb000 rw-p 00000000 00:00 0                          [heap]
7f1000000000-7f1040000000 rw-s 00000000 00:01 1048                       /memfd:my ram (deleted)
7f1040000000-7f1080000000 rw-s 40000000 00:01 1048                       /memfd:my ram (deleted)
7f1080000000-7f1080200000 rw-p 00000000 00:00 0 
7f1080200000-7f1090200000 rw-p 00000000 00:00 0 
7f1090200000-7f1090201000 ---p 00000000 00:00 0 
7fff0000c000-7fff0000e000 r-xp 00000000 00:00 0                          [vdso]
`

func TestMaps(t *testing.T) {
	maps, err := parseMaps(strings.NewReader(mapsText))
	require.NoError(t, err)
	require.Len(t, maps, 7)
	require.Equal(t, "/memfd:my ram (deleted)", maps[1].path)
	require.True(t, maps[1].shared())
	require.EqualValues(t, 1048, maps[1].inode)
	require.EqualValues(t, 1, maps[1].dev)
	require.False(t, maps[6].anonymous(), "vdso")

	parts, err := cover(maps, 0x7f1030000000, 0x7f1050000000)
	require.NoError(t, err)
	require.Len(t, parts, 2)
	require.EqualValues(t, 0x30000000, parts[0].off)
	require.EqualValues(t, 0x10000000, parts[1].size())
	_, err = cover(maps, 0x7f1090000000, 0x7f1091000000)
	require.Error(t, err)
	_, err = cover(maps, 0x1000, 0x2000)
	require.Error(t, err)

	at, err := findRAM(maps, &machine{ram: 256 * mib})
	require.NoError(t, err)
	require.EqualValues(t, 0x7f1080200000, at, "not with its small neighbour")
	at, err = findRAM(maps, &machine{ram: 2 * gib, backend: "r", objects: map[string]object{"r": {typ: "memory-backend-memfd", size: 2 * gib}}})
	require.NoError(t, err)
	require.EqualValues(t, 0x7f1000000000, at)
	_, err = findRAM(maps, &machine{ram: 512 * mib})
	require.Error(t, err)

	for _, bad := range []string{"x", "1-2 rw-p 0 0:0", "2-1 rw-p 0 0:0 0", "1-2 rw 0 0:0 0"} {
		_, err := parseMaps(strings.NewReader(bad))
		require.Error(t, err, bad)
	}
}

func TestCmdline(t *testing.T) {
	for _, tt := range []struct {
		args string
		want machine
	}{
		{"qemu", machine{ram: 128 * mib}},
		{"qemu -M q35 -m 512", machine{typ: "q35", ram: 512 * mib}},
		{"/usr/bin/qemu-system-aarch64 -machine virt,gic-version=3", machine{typ: "virt", ram: 128 * mib, arm: true}},
		{"qemu --machine type=pc,accel=kvm -m size=1.5G,slots=2,maxmem=8G", machine{typ: "pc", ram: 1536 * mib}},
		{"qemu -machine q35,memory-backend=a -m 1048576K -object memory-backend-file,id=a,size=1G,mem-path=/x,,y,share=on", machine{
			typ: "q35", ram: gib, backend: "a",
			objects: map[string]object{"a": {"memory-backend-file", gib, "/x,y", true}},
		}},
		{`qemu -m 1G -object {"qom-type":"memory-backend-memfd","id":"b","size":1073741824,"share":true} -object rng-random,id=c`, machine{
			ram: gib, objects: map[string]object{"b": {"memory-backend-memfd", gib, "", true}},
		}},
	} {
		if tt.want.objects == nil {
			tt.want.objects = map[string]object{}
		}
		m, err := parseCmdline(strings.Fields(tt.args))
		require.NoError(t, err, tt.args)
		require.Equal(t, tt.want, *m, tt.args)
	}
	for _, bad := range []string{
		"qemu -m x", "qemu -m 99999999999999999999G", "qemu -numa node,memdev=a", "qemu -device pc-dimm,memdev=a",
		`qemu -device {"driver":"virtio-mem-pci"}`, "qemu -mem-path /x", `qemu -object {"qom`,
	} {
		_, err := parseCmdline(strings.Fields(bad))
		require.Error(t, err, bad)
	}
}

func TestVirtIsOfARM(t *testing.T) {
	for args, want := range map[string]bool{
		"/usr/bin/qemu-system-aarch64 -M virt": true, "qemu-system-arm -machine type=virt-7.2": true,
		"qemu-system-riscv64 -M virt": false, "qemu-system-x86_64 -M virt": false, "qemu-system-aarch64 -M raspi3b": false, "qemu-system-aarch64": false,
	} {
		m, err := parseCmdline(strings.Fields(args))
		require.NoError(t, err)
		require.Equal(t, want, m.virt(), args)
	}
}

func FuzzCmdline(f *testing.F) {
	f.Add("-m\x00512M\x00-object\x00memory-backend-ram,id=x,size=1.5G")
	f.Fuzz(func(t *testing.T, s string) {
		parseCmdline(append([]string{"qemu"}, strings.Split(s, "\x00")...))
	})
}

func e820(entries ...[3]uint64) []byte {
	var b []byte
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint64(b, e[0])
		b = binary.LittleEndian.AppendUint64(b, e[1])
		b = binary.LittleEndian.AppendUint32(b, uint32(e[2]))
	}
	return b
}

func TestE820(t *testing.T) {
	reserved := [3]uint64{0xfeffc000, 0x4000, 2}
	search := func(ram uint64, b []byte) (layout, error) {
		found := make(map[layout]int)
		findE820(append([]byte{1, 2, 3, 4}, b...), ram, found)
		return chooseLayout(found, &machine{ram: ram})
	}
	l, err := search(5*gib, e820(reserved, [3]uint64{0, 2 * gib, 1}, [3]uint64{4 * gib, 3 * gib, 1}))
	require.NoError(t, err)
	require.Equal(t, layout{2 * gib, 4 * gib}, l)
	l, err = search(gib, e820([3]uint64{0, gib, 1}))
	require.NoError(t, err)
	require.Equal(t, []block{{len: gib}}, l.blocks(gib))

	two := append(e820([3]uint64{0, 2 * gib, 1}, [3]uint64{4 * gib, 3 * gib, 1}), e820([3]uint64{0, 3 * gib, 1}, [3]uint64{4 * gib, 2 * gib, 1})...)
	for _, bad := range [][]byte{
		nil,
		e820([3]uint64{0, 2 * gib, 1}),
		e820([3]uint64{0, 2 * gib, 1}, [3]uint64{4 * gib, 2 * gib, 1}),
		e820([3]uint64{0, 2 * gib, 1}, [3]uint64{2 * gib, 3 * gib, 1}),
		e820([3]uint64{0, 5 * gib, 1}),
		two,
	} {
		_, err := search(5*gib, bad)
		require.ErrorIs(t, err, ErrLayout)
	}
}

func TestSmallParsers(t *testing.T) {
	b, err := parseXP("0000000000001000: 0x0807060504030201 0x0000000000000009\r\n0000000000001010: 0x0a\r\n")
	require.NoError(t, err)
	require.Len(t, b, 24)
	require.Equal(t, []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, b[:9])
	_, err = parseXP("1000: Cannot access memory")
	require.Error(t, err)
	hva, err := parseHostAddress("Host virtual address for 0x0 (pc.ram) is 0x7fa4c7fff000\r\n")
	require.NoError(t, err)
	require.EqualValues(t, 0x7fa4c7fff000, hva)
	for _, bad := range []string{"", "Memory at address 0xfec00000 is not RAM", "x is 0xffffffffffffffff"} {
		_, err = parseHostAddress(bad)
		require.Error(t, err, bad)
	}
}
