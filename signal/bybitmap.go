package signal

import (
	"context"

	"github.com/ovmigrate/ovmigrate/kernel"
)

type byBitmap struct{ *op }

func (b *byBitmap) deliver(ctx context.Context, t *kernel.Task, sig Signal) error {
	return ErrUnsupported
}
