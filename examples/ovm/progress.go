package main

import (
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows on standard error how much of something is done. A nil progress
// shows nothing.
type progress struct {
	mu   sync.Mutex
	bar  *progressbar.ProgressBar
	done int64
}

// startProgress begins a progress bar, if there is somebody to look at it.
func (a *app) startProgress(what string) *progress {
	if !a.progress && !isTerminal(a.stderr) {
		return nil
	}
	return &progress{bar: progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(a.stderr),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// report says that done of total bytes are done. Calls may come out of order.
func (p *progress) report(done, total int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if total > 0 {
		p.bar.ChangeMax64(total)
	}
	if done > p.done {
		p.done = done
		p.bar.Set64(done)
	}
}

// finish takes the bar away.
func (p *progress) finish() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bar.Finish()
}
