package kernel

import (
	"fmt"
)

// TTY is one end of a terminal: a tty_struct.
type TTY struct {
	k    *Kernel
	Addr Addr // of the tty_struct: the identity of the terminal end
	ttyFields
	Driver        TTYDriver
	Termios       Termios
	TermiosLocked Termios
	Win           Winsize
	Session       PID // in the initial pid namespace, 0 for none
	PGrp          PID // foreground process group, likewise
}

type ttyFields struct {
	Index       int32    `k:"index"`
	Flags       uint64   `k:"flags"` // bits TTY_*
	Count       int32    `k:"count"`
	Packet      bool     `k:"ctrl.packet|packet"` // TIOCPKT of a pty master
	PktStatus   uint8    `k:"ctrl.pktstatus|ctrl_status"`
	SessionPID  Addr     `k:"ctrl.session|session"` // struct pid
	PGrpPID     Addr     `k:"ctrl.pgrp|pgrp"`
	Stopped     bool     `k:"flow.stopped|stopped"` // by ^S
	Link        Addr     `k:"link"`                 // the other end of a pty, 0 if closed
	DriverAddr  Addr     `k:"driver"`
	Ldisc       Addr     `k:"ldisc"`
	DiscData    Addr     `k:"disc_data"`
	Port        Addr     `k:"port"`
	NameRaw     [64]byte `k:"name"`
	TermiosAddr Addr     `k:"&termios"`
	LockedAddr  Addr     `k:"&termios_locked"`
	WinsizeAddr Addr     `k:"&winsize"`
}

// Termios is the setting of a terminal (struct ktermios).
type Termios struct {
	Iflag  uint32   `k:"c_iflag"`
	Oflag  uint32   `k:"c_oflag"`
	Cflag  uint32   `k:"c_cflag"`
	Lflag  uint32   `k:"c_lflag"`
	Line   uint8    `k:"c_line"`
	CC     [19]byte `k:"c_cc"`
	Ispeed uint32   `k:"c_ispeed"`
	Ospeed uint32   `k:"c_ospeed"`
}

// Winsize is the size of a terminal's window, in characters and in pixels.
type Winsize struct {
	Row    uint16 `k:"ws_row"`
	Col    uint16 `k:"ws_col"`
	XPixel uint16 `k:"ws_xpixel"`
	YPixel uint16 `k:"ws_ypixel"`
}

// TTYDriver is the driver of a terminal.
type TTYDriver struct {
	Name       string // as /proc/tty/drivers shows it: "pty_slave", "serial"
	Type       TTYType
	Subtype    uint16 // PTY_TYPE_* and such
	Major      uint32
	MinorStart uint32
	Num        uint32
}

type ttyDriver struct {
	DriverName Addr   `k:"driver_name"`
	Major      int32  `k:"major"`
	MinorStart int32  `k:"minor_start"`
	Num        uint32 `k:"num"`
	Type       uint32 `k:"type"`
	Subtype    uint32 `k:"subtype"`
}

type ttyFilePrivate struct {
	TTY  Addr `k:"tty"`
	File Addr `k:"file"`
}

var (
	ttyLayout        = LayoutOf[ttyFields]("tty_struct")
	termiosLayout    = LayoutOf[Termios]("ktermios")
	winsizeLayout    = LayoutOf[Winsize]("winsize")
	ttyDriverLayout  = LayoutOf[ttyDriver]("tty_driver")
	ttyPrivateLayout = LayoutOf[ttyFilePrivate]("tty_file_private")
)

// TTYType is the sort of a terminal driver. The kernel's own numbers changed.
type TTYType uint8

// Types of drivers.
const (
	TTYTypeUnknown TTYType = iota
	TTYTypeSystem          // /dev/tty, /dev/console, /dev/ptmx
	TTYTypeConsole         // virtual consoles
	TTYTypeSerial
	TTYTypePTY
	TTYTypeSCC
	TTYTypeSyscons
)

var ttyTypeNames = [...]string{"unknown", "system", "console", "serial", "pty", "scc", "syscons"}

func (t TTYType) String() string {
	if int(t) < len(ttyTypeNames) {
		return ttyTypeNames[t]
	}
	return "unknown"
}

// Subtypes of pty drivers.
const (
	PTYMaster = 1
	PTYSlave  = 2
)

// Bits of TTY.Flags, as include/linux/tty.h had them until 6.17 numbered them anew.
const (
	TTYThrottled   = 1 << 0
	TTYIOError     = 1 << 1
	TTYOtherClosed = 1 << 2
	TTYExclusive   = 1 << 3
	TTYPTYLock     = 1 << 16 // of a master: the slave cannot be opened yet
	TTYHupped      = 1 << 18
)

// TTY returns the terminal behind a file of KindTTY. A file whose terminal was hung
// up has one still, with TTYHupped set. Errors: ErrWrongKind, *PathError,
// ErrCorrupt. Source: drivers/tty/tty.h:file_tty.
func (f *File) TTY() (*TTY, error) {
	if f.Kind != KindTTY || f.Private == 0 {
		return nil, f.wrongKind("tty")
	}
	p, err := ttyPrivateLayout.Load(f.k, f.Private)
	if err != nil {
		return nil, err
	}
	if p.File != f.Addr {
		return nil, corrupt(f.Private, "tty_file_private", "belongs to file %s, not %s", p.File, f.Addr)
	}
	return f.k.TTYAt(p.TTY)
}

// ControllingTTY returns the controlling terminal of t's session, nil if it has
// none. Source: signal_struct.tty.
func (t *Task) ControllingTTY() (*TTY, error) {
	if t.Signal == 0 {
		return nil, nil
	}
	s, err := t.SignalAttr()
	if err != nil || s.TTY == 0 {
		return nil, err
	}
	return t.k.TTYAt(s.TTY)
}

// TTYAt reads the tty_struct at a.
func (k *Kernel) TTYAt(a Addr) (*TTY, error) {
	t := &TTY{k: k, Addr: a}
	if err := ttyLayout.LoadInto(k, a, &t.ttyFields); err != nil {
		return nil, err
	}
	t.Flags = k.ttyFlags(t.Flags)
	if err := termiosLayout.LoadInto(k, t.TermiosAddr, &t.Termios); err != nil {
		return nil, err
	}
	if err := termiosLayout.LoadInto(k, t.LockedAddr, &t.TermiosLocked); err != nil {
		return nil, err
	}
	if err := winsizeLayout.LoadInto(k, t.WinsizeAddr, &t.Win); err != nil {
		return nil, err
	}
	var err error
	if t.Driver, err = k.ttyDriver(t.DriverAddr); err != nil {
		return nil, err
	}
	if t.Session, err = k.PIDNumber(t.SessionPID); err != nil {
		return nil, err
	}
	t.PGrp, err = k.PIDNumber(t.PGrpPID)
	return t, err
}

func (k *Kernel) ttyDriver(a Addr) (TTYDriver, error) {
	d, err := ttyDriverLayout.Load(k, a)
	if err != nil {
		return TTYDriver{}, err
	}
	out := TTYDriver{
		Subtype: uint16(d.Subtype), Major: uint32(d.Major), MinorStart: uint32(d.MinorStart), Num: d.Num,
		Type: TTYType(min(d.Type+k.ttyTypeBase(), 0xff)),
	}
	if d.DriverName != 0 {
		out.Name, err = k.CString(d.DriverName, 64)
	}
	return out, err
}

// ttyTypeBase returns what to add to the kernel's number of a driver type. They
// were macros from 1 on, and are an enum from 0 on since 6.17.
func (k *Kernel) ttyTypeBase() uint32 {
	e, err := k.types.Enum("tty_driver_type")
	if err != nil {
		return 0
	}
	v, err := e.EnumValue("TTY_DRIVER_TYPE_SYSTEM")
	if err != nil {
		return 0
	}
	return uint32(TTYTypeSystem) - uint32(v)
}

// ttyFlags returns the bits of tty_struct.flags as the constants above have them. They
// were macros, and are an enum of other numbers since 6.17.
func (k *Kernel) ttyFlags(raw uint64) (flags uint64) {
	e, err := k.types.Enum("tty_struct_flags")
	if err != nil {
		return raw
	}
	for name, bit := range map[string]uint64{
		"TTY_THROTTLED": TTYThrottled, "TTY_IO_ERROR": TTYIOError, "TTY_OTHER_CLOSED": TTYOtherClosed,
		"TTY_EXCLUSIVE": TTYExclusive, "TTY_PTY_LOCK": TTYPTYLock, "TTY_HUPPED": TTYHupped,
	} {
		if v, err := e.EnumValue(name); err == nil && raw>>uint64(v)&1 != 0 {
			flags |= bit
		}
	}
	return flags
}

// Name returns the terminal's name as the kernel's messages show it: "pts0",
// "ttyS0", "ptm0".
func (t *TTY) Name() string { return cstring(t.NameRaw[:]) }

// IsMaster says whether t is the master end of a pty.
func (t *TTY) IsMaster() bool { return t.Driver.Type == TTYTypePTY && t.Driver.Subtype == PTYMaster }

// IsSlave says whether t is the slave end of a pty.
func (t *TTY) IsSlave() bool { return t.Driver.Type == TTYTypePTY && t.Driver.Subtype == PTYSlave }

// Dev returns the device number of the terminal, the tty_nr of /proc/PID/stat in
// its Stat encoding. Source: drivers/tty/tty_io.c:tty_devnum.
func (t *TTY) Dev() Dev { return Dev{t.Driver.Major, t.Driver.MinorStart + uint32(t.Index)} }

// Peer returns the other end of a pty, nil if there is none.
func (t *TTY) Peer() (*TTY, error) {
	if t.Link == 0 {
		return nil, nil
	}
	p, err := t.k.TTYAt(t.Link)
	if err == nil && p.Link != t.Addr {
		err = fmt.Errorf("peer of %s: %w", t.Name(), corrupt(t.Link, "tty_struct", "link leads to %s", p.Link))
	}
	return p, err
}
