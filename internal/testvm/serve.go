package testvm

import (
	"context"
	"io"
	"net"

	"github.com/ovmigrate/ovmigrate/internal/testvm/proto"
)

// Serve lets other processes use the guest's agent, through connections to l, until
// l is closed. See Attach.
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

// Attach connects to a guest that another process serves on a Unix socket. The VM
// that it returns can run programs and move files, nothing else.
func Attach(ctx context.Context, socket string) (*VM, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	vm := &VM{agent: c, client: proto.NewClient(c)}
	select {
	case <-vm.client.Ready():
		return vm, nil
	case <-vm.client.Done():
		return nil, vm.client.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
