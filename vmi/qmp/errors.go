package qmp

import (
	"errors"
	"fmt"
)

// Errors of a connection, for errors.Is.
var (
	// ErrClosed: Close was called, or QEMU closed the socket (it quit, was killed,
	// or took another client). Every call that waits, and every later one, fails.
	ErrClosed = errors.New("QMP connection is closed")

	// ErrNotQMP: whoever listens on the socket does not speak QMP.
	ErrNotQMP = errors.New("not a QMP socket")

	// ErrNoGreeting: the host accepted the connection but nobody said anything. A
	// QMP socket serves one client at a time, and the others wait in silence; a
	// server of another protocol may wait for its client to speak.
	ErrNoGreeting = errors.New("no QMP greeting: in use by another client, or not a QMP socket")
)

// Error is QEMU's refusal of a command.
type Error struct {
	Command string // "stop"
	Class   string // "GenericError", "CommandNotFound", …
	Desc    string // QEMU's sentence
}

func (e *Error) Error() string { return fmt.Sprintf("QMP %s: %s", e.Command, e.Desc) }
