package kernel_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// compareSplitBTF compares the types of a module, as they are in guest memory, with
// what an independent reader finds in the guest's /sys/kernel/btf/MODULE. It returns
// how many members it compared.
func compareSplitBTF(t *testing.T, m *kernel.Module, blob []byte, base *btf.Spec) (members int) {
	t.Helper()
	spec, err := btf.LoadSplitSpecFromReader(bytes.NewReader(blob), base)
	require.NoError(t, err, m.Name)
	ours, err := m.Types()
	require.NoError(t, err, m.Name)
	for typ, err := range spec.All() {
		require.NoError(t, err, m.Name)
		var theirs []btf.Member
		var size uint32
		switch s := typ.(type) {
		case *btf.Struct:
			theirs, size = s.Members, s.Size
		case *btf.Union:
			theirs, size = s.Members, s.Size
		default:
			continue
		}
		if typ.TypeName() == "" {
			continue
		}
		st, err := ours.Struct(typ.TypeName())
		if ambiguous := new(types.AmbiguousError); errors.As(err, &ambiguous) {
			continue
		}
		require.NoError(t, err, m.Name)
		require.Equal(t, int(size), st.Size, "%s: %s", m.Name, st.Name)
		require.Len(t, st.Members, len(theirs), "%s: %s", m.Name, st.Name)
		for i, want := range theirs {
			got := &st.Members[i]
			require.Equal(t, want.Name, got.Name, "%s: %s", m.Name, st.Name)
			require.Equal(t, int(want.Offset), got.BitOffset, "%s: %s.%s", m.Name, st.Name, want.Name)
			require.Equal(t, int(want.BitfieldSize), got.BitSize, "%s: %s.%s", m.Name, st.Name, want.Name)
			mt, err := got.Type()
			require.NoError(t, err)
			if n, err := btf.Sizeof(want.Type); err == nil {
				size, err := mt.SizeOf()
				require.NoError(t, err)
				require.Equal(t, n, size, "%s: %s.%s is %s", m.Name, st.Name, want.Name, mt)
			}
			members++
		}
	}
	return members
}
