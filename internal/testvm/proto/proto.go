// Package proto is the protocol between the test harness and the agent that runs
// in a test guest: requests with streams, multiplexed by id over one byte pipe (a
// virtio-serial port). Every stream has a window, so that one slow reader, or a
// guest process that does not read its standard input, stops only itself.
//
// A frame is type (1 byte), id (4 bytes, little endian), length (4 bytes), payload.
// The client opens an id with a [Request]; both sides then exchange data,
// acknowledgements and end-of-input marks; the agent closes the id with a
// [Response] after the last output.
package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Type says what a frame carries.
type Type byte

// The frame types.
const (
	Hello    Type = 1 + iota // agent → client, id 0: the agent (re)started
	Start                    // client → agent: a Request in JSON
	Stdin                    // client → agent: input bytes; no bytes: end of input
	Stdout                   // agent → client: output bytes
	Stderr                   // agent → client: error output bytes
	Ack                      // both: Type of the stream, then 4 bytes: bytes consumed
	Cancel                   // client → agent: kill, forget
	Finished                 // agent → client: a Response in JSON
)

// Magic is the payload of a Hello frame. It changes with the protocol.
const Magic = "ovm-agent-1"

// MaxPayload bounds a frame, Window the bytes of a stream sent and not yet
// acknowledged.
const (
	MaxPayload = 32<<10 - headerSize
	Window     = 1 << 20

	headerSize = 9
)

// ErrFrame is wrapped by errors about bytes that are no frame.
var ErrFrame = errors.New("bad frame")

// Frame is one unit on the wire.
type Frame struct {
	Type    Type
	ID      uint32
	Payload []byte
}

// ReadFrame reads one frame. The payload is a fresh slice. At a clean end of r the
// error is io.EOF.
func ReadFrame(r io.Reader) (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Type: Type(h[0]), ID: binary.LittleEndian.Uint32(h[1:])}
	n := binary.LittleEndian.Uint32(h[5:])
	if f.Type < Hello || f.Type > Finished || n > MaxPayload {
		return Frame{}, fmt.Errorf("%w: type %d, %d bytes", ErrFrame, f.Type, n)
	}
	f.Payload = make([]byte, n)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}

// AppendFrame appends the encoding of f to b.
func AppendFrame(b []byte, f Frame) ([]byte, error) {
	if len(f.Payload) > MaxPayload {
		return b, fmt.Errorf("%w: %d bytes in one frame", ErrFrame, len(f.Payload))
	}
	b = append(b, byte(f.Type))
	b = binary.LittleEndian.AppendUint32(b, f.ID)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Payload)))
	return append(b, f.Payload...), nil
}

// Op is what a request asks for.
type Op string

// The operations.
const (
	OpExec  Op = "exec"  // run Argv, stream its input and output, wait
	OpSpawn Op = "spawn" // start Argv in a session of its own and leave it running
	OpPut   Op = "put"   // write the input stream to the file Path
	OpGet   Op = "get"   // send the file Path as the output stream
)

// Request is the payload of a Start frame.
type Request struct {
	Op     Op       `json:"op"`
	Argv   []string `json:"argv,omitempty"`
	Env    []string `json:"env,omitempty"` // added to the agent's
	Dir    string   `json:"dir,omitempty"`
	Path   string   `json:"path,omitempty"`
	Mode   uint32   `json:"mode,omitempty"`   // of a file put; 0: 0644
	Stdin  string   `json:"stdin,omitempty"`  // OpSpawn: files; empty: /dev/null
	Stdout string   `json:"stdout,omitempty"` // appended to, created if missing
	Stderr string   `json:"stderr,omitempty"` // empty: as Stdout
	Cgroup string   `json:"cgroup,omitempty"` // below /sys/fs/cgroup, made if missing
}

// Response is the payload of a Finished frame.
type Response struct {
	Err    string `json:"err,omitempty"` // the operation itself failed
	PID    int    `json:"pid,omitempty"`
	Code   int    `json:"code,omitempty"`   // exit status
	Signal int    `json:"signal,omitempty"` // number of the signal that ended it
}
