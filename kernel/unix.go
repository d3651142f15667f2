package kernel

import (
	"fmt"
	"iter"
)

type unixSock struct {
	UAddr  Addr `k:"addr"`
	Mnt    Addr `k:"path.mnt"`
	Dentry Addr `k:"path.dentry"`
	Peer   Addr `k:"peer"`
}

type unixAddress struct {
	Len  int32 `k:"len"`
	Name Addr  `k:"&name"`
}

type unixSKBParms struct {
	PID      Addr   `k:"pid"`
	UID      uint32 `k:"uid"`
	GID      uint32 `k:"gid"`
	FP       Addr   `k:"fp"`
	Consumed uint32 `k:"consumed"`
}

type scmFPList struct {
	Count int16 `k:"count"`
	Files Addr  `k:"&fp"`
}

var (
	unixSockLayout     = LayoutOf[unixSock]("unix_sock") // absent if AF_UNIX is a module
	unixAddressLayout  = LayoutOf[unixAddress]("unix_address")
	unixSKBParmsLayout = LayoutOf[unixSKBParms]("unix_skb_parms")
	scmFPListLayout    = LayoutOf[scmFPList]("scm_fp_list")
)

const (
	unixBuckets = 512 // UNIX_HASH_SIZE, and before 6.0 twice that of that time
	maxUnixName = 108 // sizeof(sun_path)
	maxSCMFiles = 253 // SCM_MAX_FD
)

// UnixSockets yields the Unix sockets of the namespace, unbound ones too. Errors as
// of Sockets. Source: net/unix/af_unix.c:unix_get_first.
func (n *Net) UnixSockets() iter.Seq2[*Socket, error] {
	return n.walk(func() ([]sockTable, error) {
		base, path := n.UnixBuckets, "net.unx.table"
		if !netLayout.Has(n.k, "UnixBuckets") {
			var err error
			path = "unix_socket_table"
			if base, err = n.k.Symbol(path); err != nil {
				return nil, err
			}
		}
		t, err := n.hlistTable(path, base, unixBuckets)
		return []sockTable{t}, err
	})
}

func (s *Socket) unix() (unixSock, error) {
	if s.Family != AFUnix {
		return unixSock{}, s.wrongKind("Unix")
	}
	return unixSockLayout.Load(s.k, s.Addr)
}

// UnixName returns the name that a Unix socket is bound to: a path as bind(2) was
// given it, or after a NUL byte an abstract name; "" if it is not bound. Source:
// net/unix/af_unix.c:unix_seq_show.
func (s *Socket) UnixName() (string, error) {
	u, err := s.unix()
	if err != nil || u.UAddr == 0 {
		return "", err
	}
	a, err := unixAddressLayout.Load(s.k, u.UAddr)
	if err != nil {
		return "", err
	}
	n := int(a.Len) - 2 // sun_family
	if n < 0 || n > maxUnixName+1 {
		return "", corrupt(u.UAddr, "unix_address", "length %d", a.Len)
	}
	b := make([]byte, n)
	if _, err := s.k.ReadAt(b, a.Name+2); err != nil {
		return "", err
	}
	if n > 0 && b[0] != 0 {
		return cstring(b), nil
	}
	return string(b), nil
}

// UnixPath returns the place in the file system that a Unix socket is bound to, the
// zero value for abstract and unbound ones. Its name may have been deleted or
// renamed since.
func (s *Socket) UnixPath() (Path, error) {
	u, err := s.unix()
	return Path{u.Mnt, u.Dentry}, err
}

// UnixPeer returns the socket at the other end of a Unix socket, nil if it is not
// connected.
func (s *Socket) UnixPeer() (*Socket, error) {
	u, err := s.unix()
	if err != nil || u.Peer == 0 {
		return nil, err
	}
	return s.k.SockAt(u.Peer)
}

// unixUnread is net/unix/af_unix.c:unix_inq_len.
func (s *Socket) unixUnread() (uint64, error) {
	var n uint64
	for b, err := range s.k.SKBQueue(s.RecvQ) {
		if err != nil {
			return n, err
		}
		p, err := unixSKBParmsLayout.Load(s.k, b.CB)
		if err != nil {
			return n, err
		}
		switch {
		case s.Type == SockDgram:
			return uint64(b.Len), nil
		case p.Consumed <= b.Len:
			n += uint64(b.Len - p.Consumed)
		default:
			return n, corrupt(b.Addr, "unix_skb_parms", "%d of %d bytes consumed", p.Consumed, b.Len)
		}
	}
	return n, nil
}

// unixMessage adds what a Unix socket sends along with data.
func (b *SKB) unixMessage(m *Message, max int) error {
	p, err := unixSKBParmsLayout.Load(b.k, b.CB)
	if err != nil {
		return err
	}
	// Datagrams are taken whole; consumed is 0 for them.
	if m.Data, err = b.Bytes(int(min(p.Consumed, b.Len)), max); err != nil {
		return err
	}
	m.UID, m.GID = p.UID, p.GID
	if m.PID, err = b.k.PIDNumber(p.PID); err != nil {
		return err
	}
	if p.FP == 0 {
		return nil
	}
	l, err := scmFPListLayout.Load(b.k, p.FP)
	if err != nil {
		return err
	}
	if l.Count < 0 || l.Count > maxSCMFiles {
		return corrupt(p.FP, "scm_fp_list", "%d files", l.Count)
	}
	for i := range int(l.Count) {
		f, err := b.k.ReadAddr(l.Files.Add(8 * i))
		if err != nil {
			return &PathError{Path: fmt.Sprintf("scm_fp_list.fp[%d]", i), Addr: p.FP, Err: err}
		}
		m.Files = append(m.Files, f)
	}
	return nil
}
