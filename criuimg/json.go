package criuimg

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// WriteJSON writes an image of kind k as JSON in the form of crit decode without
// --pretty: {"magic": "CORE", "entries": [...]}, fields with their proto names,
// enums by name, bytes in base64. Unlike crit it gives only the size of payload,
// as "extra": "... <N B>", lists the messages of a System V queue as entries, and
// strings that are not UTF-8 lose those bytes. The output is the same on every
// run.
func WriteJSON(w io.Writer, r io.Reader, k *Kind) error {
	d, err := NewDecoder(r, k)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n    \"magic\": %q,\n    \"entries\": [", k.magicName())
	for n := 0; ; n++ {
		m, err := d.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if n > 0 {
			b.WriteByte(',')
		}
		b.WriteString("\n        ")
		extra, err := payloadNote(d)
		if err != nil {
			return err
		}
		writeMessage(&b, m.ProtoReflect(), extra, 2)
		if b.Len() >= flushSize {
			if _, err := w.Write(b.Bytes()); err != nil {
				return err
			}
			b.Reset()
		}
	}
	b.WriteString("\n    ]\n}\n")
	_, err = w.Write(b.Bytes())
	return err
}

// payloadNote reads past the payload and describes it.
func payloadNote(d *Decoder) (string, error) {
	if d.PayloadSize() == 0 {
		return "", nil
	}
	n, err := io.Copy(io.Discard, d.Payload())
	return fmt.Sprintf("... <%d B>", n), err
}

// magicNames are the names crit gives to magic numbers, where they are not the
// name of the kind in capitals.
var magicNames = map[*Kind]string{
	Mountpoints: "MNTS", FileLocks: "FILE_LOCKS", PipesData: "PIPES_DATA", FifoData: "FIFO_DATA", PagemapShmem: "PAGEMAP",
	IPCVar: "IPC_VAR", MemfdInode: "MEMFD_INODE", StatsDump: "STATS", StatsRestore: "STATS", OldSigacts: "SIGACT",
	OldSignalShared: "SIGNAL", OldSignalPrivate: "SIGNAL", OldTTY: "TTY_FILES", OldEventfd: "EVENTFD_FILE",
	OldEventpoll: "EVENTPOLL_FILE", OldInotify: "INOTIFY_FILE", OldFanotify: "FANOTIFY_FILE", OldNetlinksk: "NETLINK_SK",
}

func (k *Kind) magicName() string {
	if n, ok := magicNames[k]; ok {
		return n
	}
	return string(bytes.ToUpper(bytes.ReplaceAll([]byte(k.Name), []byte("-"), []byte("_"))))
}

// writeMessage writes the fields that are set, in the order of the .proto file.
// protojson would do, but randomises its white space and refuses file names that
// are not UTF-8.
func writeMessage(b *bytes.Buffer, m protoreflect.Message, extra string, depth int) {
	comma := ""
	line := func(name string) {
		b.WriteString(comma)
		comma = ","
		indent(b, depth+1)
		fmt.Fprintf(b, "%q: ", name)
	}
	b.WriteByte('{')
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		line(string(fd.Name()))
		if !fd.IsList() {
			writeValue(b, fd, m.Get(fd), depth+1)
			continue
		}
		list := m.Get(fd).List()
		b.WriteByte('[')
		for j := range list.Len() {
			if j > 0 {
				b.WriteByte(',')
			}
			indent(b, depth+2)
			writeValue(b, fd, list.Get(j), depth+2)
		}
		indent(b, depth+1)
		b.WriteByte(']')
	}
	if n := len(m.GetUnknown()); n > 0 {
		line("unknown fields")
		fmt.Fprintf(b, "\"<%d B>\"", n)
	}
	if extra != "" {
		line("extra")
		writeString(b, extra)
	}
	if comma != "" {
		indent(b, depth)
	}
	b.WriteByte('}')
}

func indent(b *bytes.Buffer, depth int) {
	b.WriteByte('\n')
	for range depth {
		b.WriteString("    ")
	}
}

func writeValue(b *bytes.Buffer, fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		writeMessage(b, v.Message(), "", depth)
	case protoreflect.EnumKind:
		if e := fd.Enum().Values().ByNumber(v.Enum()); e != nil {
			writeString(b, string(e.Name()))
		} else {
			b.WriteString(strconv.Itoa(int(v.Enum())))
		}
	case protoreflect.BytesKind:
		writeString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.StringKind:
		writeString(b, v.String())
	default: // CRIU's messages have only bool and whole numbers besides
		b.WriteString(v.String())
	}
}

func writeString(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err == nil { // always, for a string
		b.Truncate(b.Len() - 1) // the newline
	}
}
