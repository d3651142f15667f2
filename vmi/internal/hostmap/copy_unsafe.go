package hostmap

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// store copies p to the mapping. The guest's processors run meanwhile, so an
// aligned word must never be seen half written.
func store(to, p []byte) {
	at := unsafe.Pointer(unsafe.SliceData(to))
	switch n := len(p); {
	case n == 8 && uintptr(at)%8 == 0:
		atomic.StoreUint64((*uint64)(at), binary.NativeEndian.Uint64(p))
	case n == 4 && uintptr(at)%4 == 0:
		atomic.StoreUint32((*uint32)(at), binary.NativeEndian.Uint32(p))
	case n == 2 && uintptr(at)%2 == 0:
		*(*uint16)(at) = binary.NativeEndian.Uint16(p)
	default:
		copy(to, p)
	}
}

// load copies from the mapping to p, an aligned 8-byte word in one piece.
func load(p, from []byte) {
	at := unsafe.Pointer(unsafe.SliceData(from))
	if len(p) == 8 && uintptr(at)%8 == 0 {
		binary.NativeEndian.PutUint64(p, atomic.LoadUint64((*uint64)(at)))
		return
	}
	copy(p, from)
}
