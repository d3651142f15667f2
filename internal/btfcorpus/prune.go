package btfcorpus

import (
	"bytes"
	"encoding/binary"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Words are the C names that source code mentions.
type Words map[string]bool

var word = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`)

// WordsOf collects the words of all string literals in the Go files below the
// folders, tests left out: names of structures, members and functions are among them.
func WordsOf(folders ...string) (Words, error) {
	w := Words{}
	for _, dir := range folders {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil {
						for _, name := range word.FindAllString(s, -1) {
							w[name] = true
						}
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Prune returns BTF with only the types that words name, what is embedded in them,
// and what their named members point to. Other pointers lead to forward declarations.
// Functions and per-CPU variables are kept if words name them.
func Prune(raw []byte, words Words) ([]byte, error) {
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	p := pruner{words: words, done: map[btf.Type]btf.Type{}}
	var keep []btf.Type
	for t, err := range spec.All() {
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case *btf.Struct, *btf.Union, *btf.Enum, *btf.Typedef:
			if words[t.TypeName()] {
				keep = append(keep, p.keep(t))
			}
		case *btf.Func:
			if words[t.Name] {
				keep = append(keep, &btf.Func{Name: t.Name, Type: &btf.FuncProto{Return: (*btf.Void)(nil)}, Linkage: t.Linkage})
			}
		case *btf.Datasec:
			keep = append(keep, p.datasec(t))
		}
	}
	b, err := btf.NewBuilder(keep, &btf.BuilderOptions{Deduplicate: true})
	if err != nil {
		return nil, err
	}
	return b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
}

type pruner struct {
	words Words
	done  map[btf.Type]btf.Type
}

// keep returns a copy of t in which what is not needed is cut off.
func (p *pruner) keep(t btf.Type) btf.Type {
	if c, ok := p.done[t]; ok {
		return c
	}
	switch t := t.(type) {
	case *btf.Struct:
		c := &btf.Struct{Name: t.Name, Size: t.Size}
		p.done[t] = c // before its members: they may point back
		c.Members = p.members(t.Members)
		return c
	case *btf.Union:
		c := &btf.Union{Name: t.Name, Size: t.Size}
		p.done[t] = c
		c.Members = p.members(t.Members)
		return c
	case *btf.Pointer:
		c := &btf.Pointer{}
		p.done[t] = c
		c.Target = p.target(t.Target, false)
		return c
	case *btf.Array:
		c := &btf.Array{Nelems: t.Nelems}
		p.done[t] = c
		c.Index, c.Type = p.keep(t.Index), p.keep(t.Type)
		return c
	case *btf.Typedef:
		c := &btf.Typedef{Name: t.Name}
		p.done[t] = c
		c.Type = p.keep(t.Type)
		return c
	case *btf.Const:
		return p.keep(t.Type)
	case *btf.Volatile:
		return p.keep(t.Type)
	case *btf.Restrict:
		return p.keep(t.Type)
	case *btf.TypeTag:
		return p.keep(t.Type)
	case *btf.Func, *btf.FuncProto:
		return (*btf.Void)(nil)
	}
	return t // integers, enums, forward declarations
}

func (p *pruner) members(all []btf.Member) []btf.Member {
	var kept []btf.Member
	for _, m := range all {
		m.Tags = nil
		if ptr, ok := btf.UnderlyingType(m.Type).(*btf.Pointer); ok {
			m.Type = &btf.Pointer{Target: p.target(ptr.Target, p.words[m.Name])}
		} else {
			m.Type = p.keep(m.Type)
		}
		kept = append(kept, m)
	}
	return kept
}

// target is keep for what a pointer points to: whole if it is named by the source,
// or if the member that points to it is.
func (p *pruner) target(t btf.Type, wanted bool) btf.Type {
	switch u := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		if u.Name != "" && !wanted && !p.words[u.Name] {
			return p.forward(u, u.Name, btf.FwdStruct)
		}
	case *btf.Union:
		if u.Name != "" && !wanted && !p.words[u.Name] {
			return p.forward(u, u.Name, btf.FwdUnion)
		}
	case *btf.FuncProto, *btf.Func:
		return (*btf.Void)(nil)
	}
	return p.keep(t)
}

type forwardKey struct {
	btf.Type
	of btf.Type
}

func (p *pruner) forward(t btf.Type, name string, kind btf.FwdKind) btf.Type {
	key := forwardKey{of: t}
	if c, ok := p.done[key]; ok {
		return c
	}
	c := &btf.Fwd{Name: name, Kind: kind}
	p.done[key] = c
	return c
}

func (p *pruner) datasec(t *btf.Datasec) *btf.Datasec {
	c := &btf.Datasec{Name: t.Name, Size: t.Size}
	for _, v := range t.Vars {
		if x, ok := v.Type.(*btf.Var); ok && p.words[x.Name] {
			v.Type = &btf.Var{Name: x.Name, Type: p.keep(x.Type), Linkage: x.Linkage}
			c.Vars = append(c.Vars, v)
		}
	}
	return c
}
