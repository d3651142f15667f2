package checkpoint

import (
	"fmt"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/signalfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Files that have no name anywhere: event counters, timers and the like.

func (t *fileTable) eventfd(id uint32, what string, f *kernel.File) error {
	e, err := f.EventFD()
	if err != nil {
		return err
	}
	if e.Semaphore {
		t.c.issues.refuse(what, "is an eventfd in semaphore mode, which CRIU forgets")
	}
	if e.Count > 1<<32-1 {
		t.c.issues.refuse(what, "is an eventfd that counts beyond 32 bits, which CRIU cuts")
	}
	owner, err := t.fown(f)
	if err != nil {
		return err
	}
	t.add(id, fdinfo.FdTypes_EVENTFD, &fdinfo.FileEntry{Efd: &eventfd.EventfdFileEntry{
		Id: &id, Flags: new(f.Flags &^ openOnly), Fown: owner, Counter: &e.Count,
	}})
	return nil
}

func (t *fileTable) epoll(id uint32, f *kernel.File) error {
	items, err := f.Epoll()
	if err != nil {
		return err
	}
	owner, err := t.fown(f)
	if err != nil {
		return err
	}
	e := &eventpoll.EventpollFileEntry{Id: &id, Flags: new(f.Flags &^ openOnly), Fown: owner}
	for _, i := range items {
		fd, err := t.c.leader.File(int(i.FD))
		if err != nil || fd.File.Addr != i.File {
			t.c.issues.refuse(fmt.Sprintf("epoll target %d", i.FD), "is a file that the process has closed under this number")
			continue
		}
		e.Tfd = append(e.Tfd, &eventpoll.EventpollTfdEntry{
			Id: &id, Tfd: new(uint32(i.FD)), Events: &i.Events, Data: &i.Data,
			Dev: new(fd.File.SB.Dev.Kernel()), Inode: &fd.File.Inode.Ino, Pos: new(uint64(fd.File.Pos)),
		})
	}
	t.add(id, fdinfo.FdTypes_EVENTPOLL, &fdinfo.FileEntry{Epfd: e})
	return nil
}

func (t *fileTable) timerfd(id uint32, f *kernel.File) error {
	e, err := f.TimerFD(t.c.now)
	if err != nil {
		return err
	}
	owner, err := t.fown(f)
	if err != nil {
		return err
	}
	isec, insec := split(e.Interval, time.Nanosecond)
	vsec, vnsec := split(e.Value, time.Nanosecond)
	t.add(id, fdinfo.FdTypes_TIMERFD, &fdinfo.FileEntry{Tfd: &timerfd.TimerfdEntry{
		Id: &id, Flags: new(f.Flags &^ openOnly), Fown: owner, Clockid: new(uint32(e.Clock)), Ticks: &e.Ticks,
		// The time left is relative, so the restorer must not take it for absolute.
		SettimeFlags: new(uint32(0)),
		Vsec:         vsec, Vnsec: vnsec, Isec: isec, Insec: insec,
	}})
	return nil
}

func (t *fileTable) signalfd(id uint32, f *kernel.File) error {
	mask, err := f.SignalFD()
	if err != nil {
		return err
	}
	owner, err := t.fown(f)
	if err != nil {
		return err
	}
	t.add(id, fdinfo.FdTypes_SIGNALFD, &fdinfo.FileEntry{Sgfd: &signalfd.SignalfdEntry{
		Id: &id, Flags: new(f.Flags &^ openOnly), Fown: owner, Sigmask: &mask,
	}})
	return nil
}
