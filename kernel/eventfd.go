package kernel

import "fmt"

// EventFD is the state of a file of KindEventFD.
type EventFD struct {
	Count     uint64
	Semaphore bool  // EFD_SEMAPHORE
	ID        int32 // eventfd-id of fdinfo
}

type eventfdCtx struct {
	Count uint64 `k:"count"`
	Flags uint32 `k:"flags"`
	ID    int32  `k:"id,opt"`
}

var eventfdLayout = LayoutOf[eventfdCtx]("eventfd_ctx")

// EventFD returns the counter of an eventfd. Errors: ErrWrongKind, *PathError.
// Source: fs/eventfd.c:eventfd_show_fdinfo.
func (f *File) EventFD() (*EventFD, error) {
	if f.Kind != KindEventFD {
		return nil, f.wrongKind("eventfd")
	}
	c, err := eventfdLayout.Load(f.k, f.Private)
	if err != nil {
		return nil, err
	}
	return &EventFD{Count: c.Count, Semaphore: c.Flags&1 != 0, ID: c.ID}, nil
}

type signalfdCtx struct {
	SigMask uint64 `k:"sigmask"`
}

var signalfdLayout = LayoutOf[signalfdCtx]("signalfd_ctx")

// SignalFD returns the signals that a file of KindSignalFD reads, bit number-1 for
// each. Source: fs/signalfd.c:signalfd_show_fdinfo.
func (f *File) SignalFD() (mask uint64, err error) {
	if f.Kind != KindSignalFD {
		return 0, f.wrongKind("signalfd")
	}
	c, err := signalfdLayout.Load(f.k, f.Private)
	return ^c.SigMask, err // the kernel keeps the complement
}

// EpollItem is one file that an epoll instance watches.
type EpollItem struct {
	FD     int32  // the number that it was added by
	File   Addr   // struct file, which the number may no longer lead to
	Events uint32 // EPOLL*; after a one-shot fired only the flags that are no events
	Data   uint64
	Ready  bool // on the ready list
}

type eventpoll struct {
	RBR Addr `k:"&rbr"`
}

type epitem struct {
	// The pair is packed, and its name has changed: by offset it stays the same.
	FFD    Addr   `k:"&ffd"`
	Events uint32 `k:"event.events"`
	Data   uint64 `k:"event.data"`
	RdNext Addr   `k:"rdllink.next"`
	RdAddr Addr   `k:"&rdllink"`
}

var (
	eventpollLayout = LayoutOf[eventpoll]("eventpoll")
	epitemLayout    = LayoutOf[epitem]("epitem")
)

// maxEpollItems bounds the files of one epoll instance (fs.epoll.max_user_watches
// is some hundred thousand per GiB).
const maxEpollItems = 1 << 21

// Epoll returns the files that an epoll instance watches, in the order of its tree.
// Source: fs/eventpoll.c:ep_show_fdinfo.
func (f *File) Epoll() ([]EpollItem, error) {
	if f.Kind != KindEpoll {
		return nil, f.wrongKind("epoll")
	}
	k := f.k
	ep, err := eventpollLayout.Load(k, f.Private)
	if err != nil {
		return nil, err
	}
	off, err := k.offsetOf("epitem", "rbn")
	if err != nil {
		return nil, err
	}
	var items []EpollItem
	for node, err := range k.RBTree(ep.RBR) {
		if err != nil {
			return nil, fmt.Errorf("epoll instance: %w", err)
		}
		if len(items) >= maxEpollItems {
			return nil, &PathError{Path: "eventpoll.rbr", Addr: f.Private, Err: ErrLimit}
		}
		it, err := epitemLayout.Load(k, node-Addr(off))
		if err != nil {
			return nil, err
		}
		file, err := k.ReadAddr(it.FFD)
		if err != nil {
			return nil, err
		}
		fd, err := k.ReadU32(it.FFD + 8)
		if err != nil {
			return nil, err
		}
		items = append(items, EpollItem{
			FD: int32(fd), File: file, Events: it.Events, Data: it.Data,
			Ready: it.RdNext != 0 && it.RdNext != it.RdAddr,
		})
	}
	return items, nil
}
