package kernel

type ttyLdisc struct {
	Ops Addr `k:"ops"`
}

type ttyLdiscOps struct {
	Num int32 `k:"num"`
}

type nTTY struct {
	ReadHead   uint64 `k:"read_head"`
	CommitHead uint64 `k:"commit_head"`
	CanonHead  uint64 `k:"canon_head"`
	ReadTail   uint64 `k:"read_tail"`
	Buf        Addr   `k:"&read_buf"`
	Icanon     bool   `k:"icanon"`
}

var (
	ttyLdiscLayout    = LayoutOf[ttyLdisc]("tty_ldisc")
	ttyLdiscOpsLayout = LayoutOf[ttyLdiscOps]("tty_ldisc_ops")
	nTTYLayout        = LayoutOf[nTTY]("n_tty_data")
)

const nTTYBufSize = 4096 // N_TTY_BUF_SIZE

// LineDiscipline returns the number of the terminal's line discipline (N_TTY is 0),
// or -1 if it has none, as after a hangup.
func (t *TTY) LineDiscipline() (int, error) {
	if t.Ldisc == 0 {
		return -1, nil
	}
	l, err := ttyLdiscLayout.Load(t.k, t.Ldisc)
	if err != nil {
		return -1, err
	}
	ops, err := ttyLdiscOpsLayout.Load(t.k, l.Ops)
	return int(ops.Num), err
}

// Unread returns the input that the terminal has received and nobody has read:
// first what a read would return now, then what is still being typed (in canonical
// mode, the line without its end). Input that the driver has not yet given to the
// line discipline is not seen. Disciplines other than N_TTY have none. Source:
// drivers/tty/n_tty.c:n_tty_read.
func (t *TTY) Unread() (ready, typing []byte, err error) {
	num, err := t.LineDiscipline()
	if err != nil || num != 0 || t.DiscData == 0 {
		return nil, nil, err
	}
	n, err := nTTYLayout.Load(t.k, t.DiscData)
	if err != nil {
		return nil, nil, err
	}
	end := n.CommitHead
	if n.Icanon {
		end = n.CanonHead
	}
	if n.ReadHead-n.ReadTail > nTTYBufSize || end-n.ReadTail > n.ReadHead-n.ReadTail {
		return nil, nil, corrupt(t.DiscData, "n_tty_data", "read from %d to %d of %d", n.ReadTail, end, n.ReadHead)
	}
	var ring [nTTYBufSize]byte
	if _, err := t.k.ReadAt(ring[:], n.Buf); err != nil {
		return nil, nil, err
	}
	part := func(from, to uint64) (b []byte) {
		for ; from != to; from++ {
			b = append(b, ring[from%nTTYBufSize])
		}
		return b
	}
	return part(n.ReadTail, end), part(end, n.ReadHead), nil
}
