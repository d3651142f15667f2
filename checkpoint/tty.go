package checkpoint

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// tty encodes a descriptor of a terminal, and the terminal once.
func (t *fileTable) tty(id uint32, what string, f *kernel.File) error {
	end, err := f.TTY()
	if err != nil {
		return err
	}
	if end.Flags&kernel.TTYHupped != 0 {
		t.c.issues.refuse(what, "is a terminal that was hung up")
		return nil
	}
	info, ok := ttyID(end)
	if !ok {
		t.c.issues.refuse(what, "is the terminal %s (%s), whose kind CRIU does not restore", end.Name(), end.Driver.Name)
		return nil
	}
	reg := t.newID(fileKey{file: f.Addr, mapped: true})
	e, err := t.regEntry(reg, what, f, false)
	if err != nil || e == nil {
		return err
	}
	e.Pos = new(uint64(0))
	t.add(reg, fdinfo.FdTypes_REG, &fdinfo.FileEntry{Reg: e})
	owner, err := t.fown(f)
	if err != nil {
		return err
	}
	t.add(id, fdinfo.FdTypes_TTY, &fdinfo.FileEntry{Tty: &tty.TtyFileEntry{
		Id: &id, TtyInfoId: &info, Flags: new(f.Flags &^ openOnly), Fown: owner, RegfId: &reg,
	}})
	if t.ttyIDs[info] {
		return nil
	}
	t.ttyIDs[info] = true
	ti, err := t.ttyInfo(info, end, f)
	if err != nil {
		return err
	}
	t.ttys = append(t.ttys, ti)
	return nil
}

// ttyID returns CRIU's identifier of a terminal end: it finds the peer of a pty at
// the neighbouring number. ok is false for drivers that it does not know. Source:
// criu/tty.c:get_tty_driver, tty_gen_id.
func ttyID(t *kernel.TTY) (id uint32, ok bool) {
	master := uint32(0)
	switch {
	case t.Driver.Type == kernel.TTYTypePTY:
		if t.IsMaster() {
			master = 1
		}
		return uint32(t.Index)<<1 | master, true
	case t.Driver.Type == kernel.TTYTypeConsole && t.Index >= 1 && t.Index <= 63:
		const vtBase = 1088 // above all ptys
		return vtBase<<1 + uint32(t.Index)<<1, true
	}
	return 0, false
}

func (t *fileTable) ttyInfo(id uint32, end *kernel.TTY, f *kernel.File) (*tty.TtyInfoEntry, error) {
	packet := end.Packet
	locked := end.Flags&kernel.TTYPTYLock != 0
	exclusive := end.Flags&kernel.TTYExclusive != 0
	e := &tty.TtyInfoEntry{
		Id: &id, Type: tty.TtyType_PTY.Enum(), Locked: &locked, Exclusive: &exclusive, PacketMode: &packet,
		Sid: new(uint32(end.Session)), Pgrp: new(uint32(end.PGrp)),
		Rdev:    new(uint32(f.Inode.RDev().Stat())),
		Termios: termios(&end.Termios), TermiosLocked: termios(&end.TermiosLocked),
		Winsize: &tty.WinsizeEntry{
			WsRow: new(uint32(end.Win.Row)), WsCol: new(uint32(end.Win.Col)),
			WsXpixel: new(uint32(end.Win.XPixel)), WsYpixel: new(uint32(end.Win.YPixel)),
		},
		Dev: new(uint32(f.SB.Dev.Kernel())), Uid: &f.Inode.UID, Gid: &f.Inode.GID,
	}
	if end.Driver.Type != kernel.TTYTypePTY {
		e.Type = tty.TtyType_VT.Enum()
		return e, nil
	}
	if end.Index < 0 {
		return nil, fmt.Errorf("%w: pty number %d", kernel.ErrCorrupt, end.Index)
	}
	e.Pty = &tty.TtyPtyEntry{Index: new(uint32(end.Index))}
	return e, nil
}

// termiosWords is what CRIU reads c_cc as: one array of 32-bit words of which the
// characters are the leading bytes.
const termiosWords = 32

func termios(t *kernel.Termios) *tty.TermiosEntry {
	cc := make([]uint32, termiosWords)
	for i, c := range t.CC {
		cc[i/4] |= uint32(c) << (8 * (i % 4))
	}
	return &tty.TermiosEntry{
		CIflag: &t.Iflag, COflag: &t.Oflag, CCflag: &t.Cflag, CLflag: &t.Lflag,
		CLine: new(uint32(t.Line)), CIspeed: &t.Ispeed, COspeed: &t.Ospeed, CCc: cc,
	}
}
