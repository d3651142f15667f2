package criuimg

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	bpfmap_data "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-data"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	ipc_sem "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-sem"
	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
)

// payload says what follows an entry.
type payload struct {
	size   uint64 // bytes of data
	align  uint64 // zeros follow up to a multiple of this; 0: none
	toEOF  bool   // everything up to the end of the file, size is unknown
	nested uint32 // so many entries made by sub come next, before the kind's own
	sub    func() proto.Message
}

// pad returns the number of zero bytes behind the data.
func (p payload) pad() uint64 {
	if p.align == 0 || p.size%p.align == 0 {
		return 0
	}
	return p.align - p.size%p.align
}

// payloadRule computes what follows one entry from its message.
type payloadRule func(m proto.Message) payload

func pipeData(m proto.Message) payload {
	return payload{size: uint64(m.(*pipe_data.PipeDataEntry).GetBytes())}
}

func skQueue(m proto.Message) payload {
	return payload{size: uint64(m.(*sk_packet.SkPacketEntry).GetLength())}
}

// tcpData is the receive queue, then the send queue (sk-tcp.c).
func tcpData(m proto.Message) payload {
	t := m.(*tcp_stream.TcpStreamEntry)
	return payload{size: uint64(t.GetInqLen()) + uint64(t.GetOutqLen())}
}

func bpfmapData(m proto.Message) payload {
	b := m.(*bpfmap_data.BpfmapDataEntry)
	return payload{size: uint64(b.GetKeysBytes()) + uint64(b.GetValuesBytes())}
}

// ghostData follows the chunk entries if the file is in chunks; else the bytes
// of the whole file follow the only entry (files-reg.c).
func ghostData(m proto.Message) payload {
	switch m := m.(type) {
	case *ghost_file.GhostChunkEntry:
		return payload{size: m.GetLen()}
	case *ghost_file.GhostFileEntry:
		return payload{toEOF: !m.GetChunks()}
	}
	return payload{}
}

// ipcSemData is one 16-bit value a semaphore.
func ipcSemData(m proto.Message) payload {
	return payload{size: 2 * uint64(m.(*ipc_sem.IpcSemEntry).GetNsems()), align: 8}
}

// ipcShmData: since CRIU 3.14 segments are kept as pagemap-shmem images instead.
func ipcShmData(m proto.Message) payload {
	s := m.(*ipc_shm.IpcShmEntry)
	if s.GetInPagemaps() {
		return payload{}
	}
	return payload{size: s.GetSize(), align: 4}
}

// ipcMsgData: a queue is followed by its messages, each an entry with text.
func ipcMsgData(m proto.Message) payload {
	switch m := m.(type) {
	case *ipc_msg.IpcMsgEntry:
		return payload{nested: m.GetQnum(), sub: of[ipc_msg.IpcMsg]}
	case *ipc_msg.IpcMsg:
		return payload{size: uint64(m.GetMsize()), align: 8}
	}
	return payload{}
}

// sequence follows the grammar of one file: which message comes next and what
// follows it. Decoder and Encoder share it, so neither accepts what the other
// would not make.
type sequence struct {
	kind   *Kind
	n      int // entries so far, nested ones not counted
	nested uint32
	sub    func() proto.Message
	closed bool                           // a payload up to the end of the file has begun
	rest   protoreflect.MessageDescriptor // what all entries after the first are
}

// expect returns an empty message of the type that comes next.
func (s *sequence) expect() proto.Message {
	if s.nested > 0 {
		return s.sub()
	}
	return s.kind.message(s.n)
}

// descriptor returns the type of what comes next.
func (s *sequence) descriptor() protoreflect.MessageDescriptor {
	if s.nested > 0 || s.n == 0 {
		return s.expect().ProtoReflect().Descriptor()
	}
	if s.rest == nil {
		s.rest = s.expect().ProtoReflect().Descriptor()
	}
	return s.rest
}

// accept advances past m and returns what follows it.
func (s *sequence) accept(m proto.Message) payload {
	if s.nested > 0 {
		s.nested--
	} else {
		s.n++
	}
	if s.kind.payload == nil {
		return payload{}
	}
	p := s.kind.payload(m)
	if p.nested > 0 {
		s.nested, s.sub = p.nested, p.sub
	}
	s.closed = p.toEOF
	return p
}
