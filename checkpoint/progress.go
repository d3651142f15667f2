package checkpoint

import "sync/atomic"

// progress counts bytes from several workers.
type progress struct{ n atomic.Int64 }

func (p *progress) add(n int64) int64 { return p.n.Add(n) }
