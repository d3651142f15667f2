package kernel

import (
	"errors"
	"fmt"
	"iter"
	"time"
)

// LogRecord is one message of the kernel's log.
type LogRecord struct {
	Seq      uint64        // counts messages since boot
	Time     time.Duration // since boot, by the clock that dmesg shows
	Level    int           // 0 (emergency) to 7 (debug)
	Facility int           // 0: the kernel itself; as in syslog(3), not shifted
	Continue bool          // a part of a line: the next record may go on with it

	// Caller is the thread that wrote it, or with bit 31 the CPU. Zero unless the
	// kernel was built with CONFIG_PRINTK_CALLER, and the thread 0.
	Caller uint32

	Text string // without newline at the end; bytes as they were written

	// What device it is about, as in /dev/kmsg; both may be empty.
	Subsystem, Device string
}

// LostRecordError stands in the log for messages that the kernel has overwritten
// since, or whose text it had no room for.
type LostRecordError struct{ Seq, N uint64 }

func (e *LostRecordError) Error() string {
	return fmt.Sprintf("kernel log: %d messages from number %d on are lost", e.N, e.Seq)
}

type printkRing struct {
	CountBits uint32 `k:"desc_ring.count_bits"`
	Descs     Addr   `k:"desc_ring.descs"`
	Infos     Addr   `k:"desc_ring.infos"`
	HeadID    uint64 `k:"desc_ring.head_id.counter"`
	TailID    uint64 `k:"desc_ring.tail_id.counter"`
	SizeBits  uint32 `k:"text_data_ring.size_bits"`
	Data      Addr   `k:"text_data_ring.data"`
}

type printkDesc struct {
	State uint64 `k:"state_var.counter"`
	Begin uint64 `k:"text_blk_lpos.begin"`
	Next  uint64 `k:"text_blk_lpos.next"`
}

type printkInfo struct {
	Seq       uint64   `k:"seq"`
	Time      uint64   `k:"ts_nsec"`
	TextLen   uint16   `k:"text_len"`
	Facility  uint8    `k:"facility"`
	Flags     uint8    `k:"flags"`
	Level     uint8    `k:"level"`
	Caller    uint32   `k:"caller_id"`
	Subsystem [16]byte `k:"dev_info.subsystem"`
	Device    [48]byte `k:"dev_info.device"`
}

var (
	printkRingLayout = LayoutOf[printkRing]("printk_ringbuffer")
	printkDescLayout = LayoutOf[printkDesc]("prb_desc")
	printkInfoLayout = LayoutOf[printkInfo]("printk_info")
)

// From kernel/printk/printk_ringbuffer.h and kernel/printk/printk.c.
const (
	descIDMask    = 1<<62 - 1 // the state is in the two bits above
	descFinalized = 2         // complete, and not to be extended
	descReusable  = 3         // about to be overwritten

	dataless = 1 // bit of a position: the record has no text
	emptyLog = 3 // a position: its text is an empty line

	logCont    = 8 // flag: part of a line
	maxLogBits = 30
)

// Log yields the messages of the kernel's log, the oldest first, as /dev/kmsg gives
// them. The guest may write meanwhile: as the kernel's own readers do, a record
// is taken only if its descriptor says before and after it was read that it is
// complete. The walk ends at the first record that is not complete yet. Errors in
// the sequence: *LostRecordError for messages that are gone, which does not end the
// walk; *PathError, which does. Kernels from 5.10. Source:
// kernel/printk/printk_ringbuffer.c:prb_read_valid.
func (k *Kernel) Log() iter.Seq2[LogRecord, error] {
	return func(yield func(LogRecord, error) bool) {
		r, err := k.printkRing()
		if err != nil {
			yield(LogRecord{}, err)
			return
		}
		seq, err := r.first()
		if err != nil {
			yield(LogRecord{}, err)
			return
		}
		// A guest that writes as fast as it is read must not keep the reader.
		for end := seq + 4<<r.CountBits; seq != end; seq++ {
			rec, err := r.read(seq)
			if errors.Is(err, errNotYet) {
				return
			}
			if errors.Is(err, errGone) {
				from := seq
				if seq, err = r.skip(seq); err == nil {
					err = &LostRecordError{Seq: from, N: seq - from + 1}
				}
			}
			if !yield(rec, err) {
				return
			}
			var lost *LostRecordError
			if err != nil && !errors.As(err, &lost) {
				return
			}
		}
	}
}

var (
	errNotYet = errors.New("no such record yet")
	errGone   = errors.New("record is overwritten")
)

// logRing is the ring buffer as it was when the walk began; head and tail move.
type logRing struct {
	k    *Kernel
	addr Addr
	printkRing
	descSize, infoSize int
}

func (k *Kernel) printkRing() (r *logRing, err error) {
	prb, err := k.Symbol("prb")
	if err != nil {
		return nil, err
	}
	r = &logRing{k: k}
	if r.addr, err = k.ReadAddr(prb); err != nil {
		return nil, err
	}
	if r.printkRing, err = printkRingLayout.Load(k, r.addr); err != nil {
		return nil, err
	}
	if r.CountBits > maxLogBits || r.SizeBits < 3 || r.SizeBits > maxLogBits {
		return nil, corrupt(r.addr, "prb", "2^%d records in 2^%d bytes", r.CountBits, r.SizeBits)
	}
	if r.descSize, err = printkDescLayout.Size(k); err != nil {
		return nil, err
	}
	r.infoSize, err = printkInfoLayout.Size(k)
	return r, err
}

func (r *logRing) index(n uint64) int { return int(n & (1<<r.CountBits - 1)) }

func (r *logRing) info(n uint64) (printkInfo, error) {
	return printkInfoLayout.Load(r.k, r.Infos.Add(r.index(n)*r.infoSize))
}

func (r *logRing) desc(n uint64) (printkDesc, error) {
	return printkDescLayout.Load(r.k, r.Descs.Add(r.index(n)*r.descSize))
}

// first returns the number of the oldest record.
func (r *logRing) first() (uint64, error) {
	for range 8 {
		now, err := printkRingLayout.Load(r.k, r.addr)
		if err != nil {
			return 0, err
		}
		before, err := r.desc(now.TailID)
		if err != nil {
			return 0, err
		}
		info, err := r.info(now.TailID)
		if err != nil {
			return 0, err
		}
		after, err := r.desc(now.TailID)
		if err != nil {
			return 0, err
		}
		state := after.State >> 62
		if before.State == after.State && after.State&descIDMask == now.TailID && (state == descFinalized || state == descReusable) {
			return info.Seq, nil
		}
	}
	return 0, corrupt(r.addr, "prb", "no oldest record")
}

// skip returns the number of the last record in a row that is gone.
func (r *logRing) skip(seq uint64) (uint64, error) {
	first, err := r.first()
	if err != nil || first <= seq || first-seq > 1<<62 {
		return seq, err
	}
	return first - 1, nil
}

// read returns the record seq, checked against changes by its descriptor. Source:
// kernel/printk/printk_ringbuffer.c:prb_read.
func (r *logRing) read(seq uint64) (LogRecord, error) {
	d, err := r.desc(seq)
	if err != nil {
		return LogRecord{}, err
	}
	if r.index(d.State&descIDMask) != r.index(seq) {
		return LogRecord{}, errNotYet // never used
	}
	info, err := r.info(seq)
	if err != nil {
		return LogRecord{}, err
	}
	switch state := d.State >> 62; {
	case info.Seq > seq && info.Seq-seq < 1<<62:
		return LogRecord{}, errGone
	case state != descFinalized && state != descReusable || info.Seq != seq:
		return LogRecord{}, errNotYet
	case state == descReusable:
		return LogRecord{}, errGone
	}
	text, err := r.text(d, int(info.TextLen))
	if err != nil {
		return LogRecord{}, err
	}
	after, err := r.desc(seq)
	if err != nil {
		return LogRecord{}, err
	}
	if after.State != d.State {
		return LogRecord{}, errGone
	}
	return LogRecord{
		Seq: seq, Time: time.Duration(info.Time), Level: int(info.Level), Facility: int(info.Facility),
		Continue: info.Flags&logCont != 0, Caller: info.Caller, Text: text,
		Subsystem: cstring(info.Subsystem[:]), Device: cstring(info.Device[:]),
	}, nil
}

// text returns the n bytes of text of the record with descriptor d. A block that
// would have crossed the end of the buffer begins at its start instead, behind
// nothing but its ID where it would have begun. Source: get_data.
func (r *logRing) text(d printkDesc, n int) (string, error) {
	size := uint64(1) << r.SizeBits
	if d.Begin&dataless != 0 && d.Next&dataless != 0 {
		if d.Begin == emptyLog && d.Next == emptyLog {
			return "", nil
		}
		return "", errGone
	}
	begin, end := d.Begin, d.Next
	// The end may be that of the buffer exactly (6.19 and newer).
	if begin>>r.SizeBits != (end-1)>>r.SizeBits {
		begin = end &^ (size - 1)
	}
	const head = 8 // the descriptor's ID
	if room := end - begin; room < head || room > size || begin%8 != 0 {
		return "", corrupt(r.addr, "prb.text_data_ring", "record at %#x to %#x", d.Begin, d.Next)
	}
	// The kernel cuts text where it does not fit, but not its length.
	n = min(n, int(end-begin-head))
	b := make([]byte, n)
	if _, err := r.k.ReadAt(b, r.Data.Add(int(begin&(size-1)))+head); err != nil {
		return "", err
	}
	return string(b), nil
}
