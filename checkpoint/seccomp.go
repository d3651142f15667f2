package checkpoint

import (
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (c *collector) seccomp(t *kernel.Task, tc *criu_core.ThreadCoreEntry) error {
	return nil
}
