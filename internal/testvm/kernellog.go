package testvm

import (
	"context"
	"regexp"
	"strings"
)

// complaint matches what a kernel logs when something in it is broken, which for a
// library that rewrites kernel memory is the proof of a mistake.
var complaint = regexp.MustCompile(`WARNING:|BUG:|BUG |Oops|PANIC|panic -|general protection|` +
	`double fault|unable to handle|Call Trace|stack segment|invalid opcode|` +
	`\bstall(s|ed)?\b|soft lockup|hard LOCKUP|blocked for more than|scheduling while atomic|` +
	`inconsistent lock|lockdep|circular locking|bad unlock|list_(add|del) corruption|refcount_t:|` +
	`Bad page|Bad rss-counter|page allocation failure|cgroup out of memory|Out of memory:|` +
	`use-after-free|corrupted|UBSAN|KASAN|KFENCE|segfault at|EXT4-fs error|I/O error`)

func complaints(log string) []string {
	var found []string
	for line := range strings.Lines(log) {
		if complaint.MatchString(line) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// Dmesg returns the kernel's log, read inside the guest.
func (vm *VM) Dmesg(ctx context.Context) (string, error) {
	b, err := vm.Exec(ctx, "dmesg")
	return string(b), err
}

// Warnings returns the lines of the kernel's log that say that something is wrong:
// from the console if the guest does not answer any more, with the error.
func (vm *VM) Warnings(ctx context.Context) ([]string, error) {
	log, err := vm.Dmesg(ctx)
	if err != nil {
		return complaints(vm.Console()), err
	}
	return complaints(log), nil
}
