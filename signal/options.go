package signal

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Strategy is a way to deliver a signal.
type Strategy string

// The strategies. They differ in who does the work: ByKernel fills in the work item
// with which the guest's own bpf_send_signal() would send the signal, and lets the
// kernel send it; ByBitmap does by hand what the kernel would do, bits, flags and
// wake-up. Auto is ByKernel where the checks find it usable, else ByBitmap.
const (
	Auto     Strategy = "auto"
	ByKernel Strategy = "kernel"
	ByBitmap Strategy = "bitmap"
)

// ParseStrategy returns the strategy of that name; "" is Auto.
func ParseStrategy(name string) (Strategy, error) {
	switch s := Strategy(name); s {
	case "":
		return Auto, nil
	case Auto, ByKernel, ByBitmap:
		return s, nil
	}
	return "", fmt.Errorf("no such strategy: %q (auto, kernel or bitmap)", name)
}

// Options changes how signals are sent. Nil is the zero value.
type Options struct {
	Strategy Strategy
	DryRun   bool          // plan and report, write nothing
	Thread   bool          // to the one thread that is given, as tgkill(2) does; Send only
	Timeout  time.Duration // for the effect to be seen; 0: 10 s
	Logger   *slog.Logger  // nil: no log
}

// Report is what an operation did to the guest and what came of it.
type Report struct {
	PID      kernel.PID // of the process, in the guest's initial pid namespace
	Comm     string
	Signal   Signal // 0 for Freeze and Thaw
	Strategy Strategy
	DryRun   bool
	Edits    []Edit          // in the order of writing, taken-back ones left out
	Attempts int             // deliveries begun, more than one if a lock was held
	Pauses   []time.Duration // how long the guest stood still, each time
	Latency  time.Duration   // from the resume after the write to the effect
	Effect   string          // the proof that was seen
	Note     string          // what the caller may not have expected
}

// MarshalJSON writes durations in microseconds.
func (r *Report) MarshalJSON() ([]byte, error) {
	pauses := make([]int64, len(r.Pauses))
	for i, d := range r.Pauses {
		pauses[i] = d.Microseconds()
	}
	sig := ""
	if r.Signal != 0 {
		sig = r.Signal.String()
	}
	return json.Marshal(struct {
		PID      kernel.PID `json:"pid"`
		Comm     string     `json:"comm"`
		Signal   string     `json:"signal,omitempty"`
		Strategy Strategy   `json:"strategy"`
		DryRun   bool       `json:"dry_run,omitempty"`
		Edits    []Edit     `json:"edits"`
		Attempts int        `json:"attempts"`
		Pauses   []int64    `json:"pauses_us"`
		Latency  int64      `json:"latency_us,omitempty"`
		Effect   string     `json:"effect,omitempty"`
		Note     string     `json:"note,omitempty"`
	}{r.PID, r.Comm, sig, r.Strategy, r.DryRun, r.Edits, r.Attempts, pauses, r.Latency.Microseconds(), r.Effect, r.Note})
}

const (
	defaultTimeout       = 10 * time.Second
	defaultFreezeTimeout = 5 * time.Second
)
