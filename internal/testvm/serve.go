package testvm

import (
	"context"
	"io"
	"net"

	"github.com/ovmigrate/ovmigrate/internal/testvm/proto"
)

// Serve lets other processes use the guest's agent, through connections to l, until
// l is closed. They connect with Attach.
func (vm *VM) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			// Its error is that the client has gone, which is how a session ends.
			_ = proto.Serve(c, vm.relay)
		}()
	}
}

func (vm *VM) relay(ctx context.Context, req proto.Request, stdin io.Reader, stdout, stderr io.Writer) proto.Response {
	r, err := vm.client.Do(ctx, req, stdin, stdout, stderr)
	if err != nil {
		r.Err = err.Error()
	}
	return r
}
