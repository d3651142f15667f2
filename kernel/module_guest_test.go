package kernel_test

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
)

//go:embed testdata/modules.py
var modulesProgram []byte

// prepareLog loads some modules and writes lines to the log that are not as usual.
const prepareLog = `
modprobe -a -q tun veth nf_tables loop dm_mod bridge vfat vhost_net || true
echo 0 > /proc/sys/kernel/kptr_restrict
printf '<4>back\\slash\ttab' > /dev/kmsg
printf '<30>two\nlines' > /dev/kmsg
printf '<13>caf\303\251' > /dev/kmsg
printf '<14>' > /dev/kmsg
`

// dumpModules asks the guest for its modules, symbols and log.
func dumpModules(t *testing.T, vm *testvm.VM) *moduleDump {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestTime)
	defer cancel()
	_, err := vm.Exec(ctx, "sh", "-c", prepareLog)
	require.NoError(t, err)
	require.NoError(t, vm.Put(ctx, "/root/modules.py", bytes.NewReader(modulesProgram), 0o644))
	out, err := vm.Exec(ctx, "python3", "/root/modules.py")
	require.NoError(t, err)
	d := new(moduleDump)
	require.NoError(t, json.Unmarshal(out, d))
	return d
}

// checkModules compares modules, their symbols and types, and the kernel log with what
// the guest says.
func checkModules(t *testing.T, z *zoo) {
	dump := dumpModules(t, z.vm)
	t.Run("modules", func(t *testing.T) { compareModules(z.k, dump).report(t) })
	t.Run("symbols", func(t *testing.T) { compareModuleSymbols(z.k, dump).report(t) })
	t.Run("lookup", func(t *testing.T) { compareSymbolLookup(z.k).report(t) })
	t.Run("log", func(t *testing.T) { compareLog(z.k, dump).report(t) })
	// Since 5.11; without symbols of variables nothing leads to them.
	if _, err := z.k.Symbol("btf_modules"); err == nil || z.k.Arch() == paging.X86_64 && hasType(z.k, "btf_module") {
		t.Run("types", func(t *testing.T) { compareModuleTypes(t, z.k, z.vm) })
	}
}

func hasType(k *kernel.Kernel, name string) bool {
	_, err := k.Types().Struct(name)
	return err == nil
}

// compareModuleTypes compares the types of all modules that have any.
func compareModuleTypes(t *testing.T, k *kernel.Kernel, vm *testvm.VM) {
	t.Helper()
	get := func(name string) []byte {
		ctx, cancel := context.WithTimeout(t.Context(), guestTime)
		defer cancel()
		var b bytes.Buffer
		require.NoError(t, vm.Get(ctx, "/sys/kernel/btf/"+name, &b))
		return b.Bytes()
	}
	base, err := btf.LoadSpecFromReader(bytes.NewReader(get("vmlinux")))
	require.NoError(t, err)
	members := 0
	for m, err := range k.Modules() {
		require.NoError(t, err)
		members += compareSplitBTF(t, m, get(m.Name), base)
	}
	require.Greater(t, members, 500)

	tun, err := k.ModuleTypes("tun")
	require.NoError(t, err)
	file, err := tun.Struct("tun_file")
	require.NoError(t, err)
	sk, err := file.Lookup("sk")
	require.NoError(t, err)
	sock, err := k.Types().Struct("sock")
	require.NoError(t, err)
	require.Same(t, sock, sk.Type, "the kernel's own types are not doubled")
}
