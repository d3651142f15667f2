package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// The expressions of `ovm obj` are C's, with names for what one starts from:
//
//	unary   = ("*" | "&") unary | "(" "struct" NAME "*" ")" unary | postfix
//	postfix = start { ("." | "->") NAME | "[" N "]" }
//	start   = "task(" PID ")" | "percpu(" NAME "," CPU ")" | SYMBOL | 0xADDRESS | "(" unary ")"
//
// As in no C compiler, "." follows a pointer too.

// globals are the types of kernel variables, which BTF does not describe.
var globals = map[string]string{
	"init_task": "task_struct", "init_mm": "mm_struct", "init_cred": "cred",
	"init_files": "files_struct", "init_fs": "fs_struct", "init_signals": "signal_struct",
	"init_sighand": "sighand_struct", "init_nsproxy": "nsproxy", "init_pid_ns": "pid_namespace",
	"init_user_ns": "user_namespace", "init_uts_ns": "uts_namespace", "init_ipc_ns": "ipc_namespace",
	"init_cgroup_ns": "cgroup_namespace", "init_time_ns": "time_namespace", "init_net": "net",
	"init_css_set": "css_set", "cgrp_dfl_root": "cgroup_root", "boot_cpu_data": "cpuinfo_x86",
	"super_blocks": "list_head", "modules": "list_head", "net_namespace_list": "list_head",
}

// value is what an expression stands for: a place of a known type, a pointer to
// one, or only an address.
type value struct {
	obj    kernel.Object
	typed  bool
	ptr    bool        // the value is obj's address, not its content
	addr   kernel.Addr // if not typed
	symbol string      // if not typed: where addr comes from
}

// maxExpr bounds how deep expressions nest.
const maxExpr = 64

type parser struct {
	k     *kernel.Kernel
	src   string
	pos   int
	depth int
}

// eval finds what expr stands for.
func eval(k *kernel.Kernel, expr string) (value, error) {
	p := &parser{k: k, src: expr}
	v, err := p.unary()
	if err != nil {
		return value{}, err
	}
	if p.space(); p.pos < len(p.src) {
		return value{}, p.fail("unexpected %q", p.src[p.pos:])
	}
	if !v.typed {
		return value{}, p.untyped(v)
	}
	return v, nil
}

func (p *parser) fail(format string, args ...any) error {
	return usagef("%s: %s", p.src, fmt.Sprintf(format, args...))
}

// untyped explains why v has no value.
func (p *parser) untyped(v value) error {
	if v.symbol == "" {
		return p.fail("what is at %s? write *(struct NAME *)%s", v.addr, v.addr)
	}
	if _, _, err := p.k.Types().PerCPU(v.symbol); err == nil {
		return p.fail("every CPU has its own %s: write percpu(%s, 0)", v.symbol, v.symbol)
	}
	return p.fail("the type of %s is not known (BTF describes no variables): write *(struct NAME *)%s",
		v.symbol, v.symbol)
}

func (p *parser) space() {
	for p.pos < len(p.src) && p.src[p.pos] == ' ' {
		p.pos++
	}
}

// eat consumes tok if it comes next.
func (p *parser) eat(tok string) bool {
	p.space()
	if !strings.HasPrefix(p.src[p.pos:], tok) {
		return false
	}
	p.pos += len(tok)
	return true
}

// word consumes a name or number; "" if there is none.
func (p *parser) word() string {
	p.space()
	start := p.pos
	for p.pos < len(p.src) {
		c := p.src[p.pos]
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		p.pos++
	}
	return p.src[start:p.pos]
}

func (p *parser) unary() (v value, err error) {
	if p.depth++; p.depth > maxExpr {
		return v, p.fail("nested too deep")
	}
	defer func() { p.depth-- }()
	switch {
	case p.eat("*"):
		if v, err = p.unary(); err != nil {
			return v, err
		}
		switch {
		case v.ptr:
			v.ptr = false
		case !v.typed:
			return v, p.untyped(v)
		default:
			v.obj, err = v.obj.Deref()
		}
		return v, err
	case p.eat("&"):
		if v, err = p.unary(); err != nil || !v.typed {
			return v, err // the address of a symbol is the symbol
		}
		if v.ptr {
			return v, p.fail("& of something that lies nowhere")
		}
		v.ptr = true
		return v, nil
	}
	start := p.pos
	if p.eat("(") {
		if tag := p.word(); tag == "struct" || tag == "union" {
			return p.cast(tag)
		}
		p.pos = start
	}
	return p.postfix()
}

// cast parses the rest of "(struct NAME *) unary".
func (p *parser) cast(tag string) (v value, err error) {
	name := p.word()
	if !p.eat("*") || !p.eat(")") {
		return v, p.fail("a cast is to a pointer: (%s %s *)", tag, name)
	}
	t, err := findType(p.k.Types(), tag+" "+name)
	if err != nil {
		return v, err
	}
	if v, err = p.unary(); err != nil {
		return v, err
	}
	a := v.addr
	if v.typed {
		a = v.obj.Addr()
		if _, err := v.obj.Type().Elem(); err == nil && !v.ptr {
			u, err := v.obj.Uint()
			if err != nil {
				return v, err
			}
			a = kernel.Addr(u)
		}
	}
	o, err := p.k.Object(t.Name, a)
	return value{obj: o, typed: true, ptr: true}, err
}

func (p *parser) postfix() (value, error) {
	v, err := p.start()
	for err == nil {
		var step string
		switch {
		case p.eat("->"), p.eat("."):
			if step = p.word(); step == "" {
				return v, p.fail("the name of a member is missing at the end of %q", p.src[:p.pos])
			}
		case p.eat("["):
			n := p.word()
			if _, err := strconv.ParseUint(n, 10, 31); err != nil || !p.eat("]") {
				return v, p.fail("%q is no index", p.src[p.pos-len(n):])
			}
			step = "[" + n + "]"
		default:
			return v, nil
		}
		if !v.typed {
			return v, p.untyped(v)
		}
		v.ptr = false
		v.obj, err = v.obj.Field(step)
	}
	return v, err
}

func (p *parser) start() (v value, err error) {
	if p.eat("(") {
		if v, err = p.unary(); err == nil && !p.eat(")") {
			err = p.fail(") is missing")
		}
		return v, err
	}
	name := p.word()
	switch {
	case name == "":
		return v, p.fail("no expression at %q", p.src[p.pos:])
	case name[0] >= '0' && name[0] <= '9':
		n, err := strconv.ParseUint(name, 0, 64)
		if err != nil {
			return v, p.fail("%q is no address", name)
		}
		return value{addr: kernel.Addr(n)}, nil
	case name == "task" && p.eat("("):
		return p.task()
	case name == "percpu" && p.eat("("):
		return p.perCPU()
	}
	a, err := p.k.Symbol(name)
	if err != nil {
		return v, err
	}
	cname, ok := globals[name]
	if !ok {
		return value{addr: a, symbol: name}, nil
	}
	o, err := p.k.Global(name, cname)
	return value{obj: o, typed: true}, err
}

func (p *parser) task() (v value, err error) {
	pid, err := parsePID(p.word())
	if err != nil {
		return v, err
	}
	if !p.eat(")") {
		return v, p.fail(") is missing")
	}
	t, err := p.k.Task(pid)
	if err != nil {
		return v, err
	}
	o, err := t.Object()
	return value{obj: o, typed: true}, err
}

func (p *parser) perCPU() (v value, err error) {
	name := p.word()
	comma := p.eat(",")
	cpu, err := strconv.Atoi(p.word())
	if !comma || err != nil || !p.eat(")") {
		return v, p.fail("write percpu(NAME, CPU)")
	}
	a, err := p.k.PerCPU(name, cpu)
	if err != nil {
		return v, err
	}
	_, t, err := p.k.Types().PerCPU(name)
	if err != nil || len(t.Members) == 0 {
		return value{addr: a, symbol: name}, nil
	}
	o, err := p.k.Object(t.Name, a)
	return value{obj: o, typed: true}, err
}
