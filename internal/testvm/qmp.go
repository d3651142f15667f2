package testvm

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// QMP runs one monitor command over the harness's socket and returns its result.
// It is not the library's client, so that a test can judge by it.
func (vm *VM) QMP(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", vm.HarnessQMPSocket())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	dec := json.NewDecoder(c)
	var greeting struct{ QMP json.RawMessage }
	if err := dec.Decode(&greeting); err != nil || greeting.QMP == nil {
		return nil, fmt.Errorf("QMP greeting: %w", err)
	}
	if _, err := qmpCall(c, dec, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return qmpCall(c, dec, command, arguments)
}

func qmpCall(c net.Conn, dec *json.Decoder, command string, arguments any) (json.RawMessage, error) {
	req := map[string]any{"execute": command}
	if arguments != nil {
		req["arguments"] = arguments
	}
	if err := json.NewEncoder(c).Encode(req); err != nil {
		return nil, fmt.Errorf("QMP %s: %w", command, err)
	}
	for {
		var r struct {
			Return json.RawMessage `json:"return"`
			Error  *struct{ Desc string }
		}
		if err := dec.Decode(&r); err != nil {
			return nil, fmt.Errorf("QMP %s: %w", command, err)
		}
		switch {
		case r.Error != nil:
			return nil, fmt.Errorf("QMP %s: %s", command, r.Error.Desc)
		case r.Return != nil:
			return r.Return, nil // anything else is an event
		}
	}
}

// Monitor runs a command of QEMU's human monitor, such as "info registers".
func (vm *VM) Monitor(ctx context.Context, line string) (string, error) {
	b, err := vm.QMP(ctx, "human-monitor-command", map[string]string{"command-line": line})
	if err != nil {
		return "", err
	}
	var s string
	err = json.Unmarshal(b, &s)
	return s, err
}
