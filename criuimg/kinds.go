package criuimg

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
)

// Magic numbers that stand before the magic of the kind (CRIU include/magic.h).
const (
	commonMagic  = 0x54564319 // before every image of img_version 2
	serviceMagic = 0x55105940 // before images that describe CRIU itself
)

// PageSize is the size in bytes of a page in a pages image. CRIU on x86-64 knows
// no other: huge pages are counted in units of this size.
const PageSize = 4096

// Frame says which magic numbers open a file.
type Frame uint8

const (
	FrameCommon  Frame = iota // common magic, then the kind's
	FrameBare                 // the kind's magic only (inventory)
	FrameService              // service magic, then the kind's
	FrameRaw                  // no magic and no entries: the file is data
)

// keyForm says how the key stands in a file name.
type keyForm uint8

const (
	keyNone keyForm = iota
	keyDecimal
	keyHex
)

// Kind describes one kind of image file. Kinds are package variables and are
// compared by pointer; they are read-only and safe for concurrent use.
type Kind struct {
	Name  string // name without key and suffix, as CRIU writes it: "core", "pagemap-shmem"
	Magic uint32 // 0 for raw kinds
	Frame Frame

	ext     string // what follows the key: ".img", ".tar.gz.img", or nothing
	key     keyForm
	first   func() proto.Message
	rest    func() proto.Message // nil: same as first
	payload payloadRule          // nil: entries have no payload
	single  bool                 // CRIU reads exactly one entry
}

// String returns the pattern of the file name, such as "core-%d.img".
func (k *Kind) String() string {
	switch k.key {
	case keyDecimal:
		return k.Name + "-%d" + k.ext
	case keyHex:
		return k.Name + "-%x" + k.ext
	}
	return k.Name + k.ext
}

// Keyed reports whether file names of the kind carry a number.
func (k *Kind) Keyed() bool { return k.key != keyNone }

// New returns an empty message of the type of the file's first entry, nil for
// raw kinds. Only pagemaps, ghost files and message queues have entries of more
// than one type.
func (k *Kind) New() proto.Message {
	if k.first == nil {
		return nil
	}
	return k.first()
}

// FileName returns the name of the file with the given key. What the key is
// depends on the kind: a pid, a file-table id, a namespace id. It is ignored
// where Keyed is false.
func (k *Kind) FileName(key uint64) string {
	switch k.key {
	case keyDecimal:
		return k.Name + "-" + strconv.FormatUint(key, 10) + k.ext
	case keyHex:
		return k.Name + "-" + strconv.FormatUint(key, 16) + k.ext
	}
	return k.Name + k.ext
}

// parse is the inverse of FileName. It accepts only names that FileName makes,
// so that no two names stand for one image.
func (k *Kind) parse(name string) (key uint64, ok bool) {
	if k.key == keyNone {
		return 0, name == k.Name+k.ext
	}
	digits, ok := strings.CutPrefix(name, k.Name+"-")
	if !ok {
		return 0, false
	}
	if digits, ok = strings.CutSuffix(digits, k.ext); !ok {
		return 0, false
	}
	base := 10
	if k.key == keyHex {
		base = 16
	}
	key, err := strconv.ParseUint(digits, base, 64)
	if err != nil || k.FileName(key) != name {
		return 0, false
	}
	return key, true
}

// KindOf returns the kind and key of an image from its file name, without a
// directory. ok is false for files that are no images, such as dump.log.
func KindOf(name string) (k *Kind, key uint64, ok bool) {
	for _, k := range kinds {
		if !strings.HasPrefix(name, k.Name) {
			continue
		}
		if key, ok := k.parse(name); ok {
			return k, key, true
		}
	}
	return nil, 0, false
}

// Kinds returns all kinds the package knows, in no special order.
func Kinds() []*Kind { return append([]*Kind(nil), kinds...) }

// message returns an empty message for entry number n of a file of the kind.
func (k *Kind) message(n int) proto.Message {
	if n > 0 && k.rest != nil {
		return k.rest()
	}
	return k.first()
}

// checkKey refuses a key for a kind that has none: it would be lost silently.
func (k *Kind) checkKey(key uint64) error {
	if !k.Keyed() && key != 0 {
		return fmt.Errorf("criuimg: %s has no key, got %d", k, key)
	}
	return nil
}
