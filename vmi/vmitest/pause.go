package vmitest

import (
	"context"
	"sync"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Pause implements [vmi.Pauser].
func (m *Mem) Pause(ctx context.Context) (resume func() error, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pauseErr != nil {
		return nil, m.pauseErr
	}
	m.depth++
	m.pauses++
	return sync.OnceValue(func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.depth--
		return nil
	}), nil
}

// FailPause makes every later Pause fail with err; nil takes that back.
func (m *Mem) FailPause(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pauseErr = err
}

// SetPaused says that somebody else has paused the guest, or not.
func (m *Mem) SetPaused(paused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.foreign = paused
}

// Continue implements [vmi.Continuer].
func (m *Mem) Continue(ctx context.Context) error {
	m.SetPaused(false)
	return ctx.Err()
}

// Paused says whether the guest is stopped now.
func (m *Mem) Paused() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.depth > 0 || m.foreign
}

// Pauses returns how often Pause was called with success; a test that ends with
// Paused false and the number it expects has forgotten no resume.
func (m *Mem) Pauses() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pauses
}

// Status implements [vmi.Stater].
func (m *Mem) Status(ctx context.Context) (vmi.Status, error) {
	if m.Paused() {
		return vmi.Status{State: "paused"}, ctx.Err()
	}
	return vmi.Status{Running: true, State: "running"}, ctx.Err()
}

// InjectNMI implements [vmi.NMI].
func (m *Mem) InjectNMI(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nmis++
	return ctx.Err()
}

// NMIs returns how often InjectNMI was called.
func (m *Mem) NMIs() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.nmis
}
