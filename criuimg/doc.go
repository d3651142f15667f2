// Package criuimg reads and writes CRIU image files and the sets they form.
//
// A checkpoint made by CRIU is a directory. Nearly every file in it has the same
// shape: one or two magic numbers, then entries, each a 32-bit length followed by
// that many bytes of protobuf (proto2). A few kinds put raw bytes behind an entry:
// the contents of a pipe behind the entry that describes it, for example. Memory
// is split in two: pagemap-N.img says which addresses are there, pages-N.img holds
// the 4 KiB pages themselves, one after the other, with no header at all.
//
// The package has three levels:
//
//   - one file: [Kind] knows the name, magic and messages of a file; [Decoder] and
//     [Encoder] do the framing over any io.Reader or io.Writer; [PageReader] and
//     [PageWriter] do memory;
//   - one directory: [Create] makes a [Dir] that appears under its final name
//     complete or not at all; [Open] gives a [Set] with typed access;
//   - one meaning: [Set.Verify] checks what CRIU takes for granted, since a stock
//     criu restore answers a bad set with a crash more often than with a message.
//
// The messages are those of github.com/checkpoint-restore/go-criu/v8/crit/images;
// the codec is this package's own.
//
// Image files may come from anywhere. Readers never panic on them, never trust a
// length before the bytes are there, and name file and offset when they refuse.
package criuimg
