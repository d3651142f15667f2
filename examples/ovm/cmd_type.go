package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

func (a *app) typeCommand() *cobra.Command {
	depth, module := 0, ""
	c := a.command("type NAME", "Show a C type of the guest's kernel",
		"type prints a struct, union, enum or typedef as C declares it, with the offset and\n"+
			"the size of every member in bytes (offset:bit and width for bit-fields).",
		func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				src := g.Types()
				if module != "" {
					var err error
					if src, err = g.ModuleTypes(module); err != nil {
						return err
					}
				}
				t, err := findType(src, args[0])
				if err != nil {
					return err
				}
				w := bufio.NewWriter(a.stdout)
				p := &typePrinter{w: w, depth: depth}
				if err := p.definition(t); err != nil {
					return err
				}
				return w.Flush()
			})
		})
	c.Flags().IntVar(&depth, "depth", 0, "print the members of named structs inside, `N` levels deep")
	c.Flags().StringVar(&module, "module", "", "look among the types of the module `NAME` first")
	return c
}

// findType returns the type that C calls name, with or without struct, union or enum.
func findType(src types.Source, name string) (*types.Type, error) {
	name = strings.Join(strings.Fields(name), " ")
	if tag, rest, ok := strings.Cut(name, " "); ok {
		switch tag {
		case "struct", "union":
			t, err := src.Struct(rest)
			if err == nil && t.Kind.String() != tag {
				return nil, fmt.Errorf("%w: %s (it is a %s)", types.ErrNoType, name, t.Kind)
			}
			return t, err
		case "enum":
			return src.Enum(rest)
		}
		return nil, fmt.Errorf("%w: %s", types.ErrNoType, name)
	}
	if t, err := src.Struct(name); err == nil {
		return t, nil
	}
	if t, err := src.Typedef(name); err == nil {
		return t, nil
	}
	if t, err := src.Enum(name); err == nil {
		return t, nil
	}
	return nil, fmt.Errorf("%w: %s", types.ErrNoType, name)
}

// maxNesting ends the printing of types that contain themselves, as corrupt type
// information may claim.
const maxNesting = 12

type typePrinter struct {
	w     *bufio.Writer
	depth int // how deep named structures are expanded
}

// definition prints t as a declaration of its own.
func (p *typePrinter) definition(t *types.Type) error {
	switch t.Kind {
	case types.Struct, types.Union:
		fmt.Fprintf(p.w, "%s {\n", printable(t.String()))
		if err := p.members(t, 0, 1, p.depth); err != nil {
			return err
		}
		fmt.Fprintf(p.w, "}; /* %d bytes */\n", t.Size)
	case types.Enum:
		fmt.Fprintf(p.w, "%s {\n", printable(t.String()))
		for _, v := range t.Values {
			fmt.Fprintf(p.w, "    %s = %d,\n", printable(v.Name), v.Value)
		}
		fmt.Fprintf(p.w, "}; /* %d bytes */\n", t.Size)
	case types.Typedef:
		e, err := t.Elem()
		if err != nil {
			return err
		}
		if e.Name == "" && len(e.Members) > 0 {
			fmt.Fprintf(p.w, "typedef %s {\n", e.Kind)
			if err := p.members(e, 0, 1, p.depth); err != nil {
				return err
			}
			fmt.Fprintf(p.w, "} %s; /* %d bytes */\n", printable(t.Name), e.Size)
			return nil
		}
		fmt.Fprintf(p.w, "typedef %s;\n", printable(declare(e, t.Name)))
	default:
		fmt.Fprintf(p.w, "%s; /* %d bytes */\n", printable(t.String()), t.Size)
	}
	return nil
}

// members prints the members of t, which lies base bits into what is printed.
func (p *typePrinter) members(t *types.Type, base, level, depth int) error {
	indent := strings.Repeat("    ", level)
	for i := range t.Members {
		m := &t.Members[i]
		mt, err := m.Type()
		if err != nil {
			return err
		}
		bit := base + m.BitOffset
		size, err := mt.SizeOf()
		if err != nil {
			return err
		}
		place := fmt.Sprintf("/* %d %d */", bit/8, size)
		if m.BitSize > 0 {
			place = fmt.Sprintf("/* %d:%d %d bits */", bit/8, bit%8, m.BitSize)
		}
		inside := mt.Kind == types.Struct || mt.Kind == types.Union
		if inside && len(mt.Members) > 0 && level < maxNesting && (mt.Name == "" || depth > 0) {
			head := mt.Kind.String()
			rest := depth
			if mt.Name != "" {
				head += " " + mt.Name
				rest--
			}
			fmt.Fprintf(p.w, "%s%s {\n", indent, printable(head))
			if err := p.members(mt, bit, level+1, rest); err != nil {
				return err
			}
			name := ""
			if m.Name != "" {
				name = " " + printable(m.Name)
			}
			fmt.Fprintf(p.w, "%s}%s; %s\n", indent, name, place)
			continue
		}
		decl := declare(mt, m.Name)
		if m.BitSize > 0 {
			decl += fmt.Sprintf(" : %d", m.BitSize)
		}
		fmt.Fprintf(p.w, "%s%-*s %s\n", indent, max(0, 56-len(indent)), printable(decl)+";", place)
	}
	return nil
}

// declare writes a C declaration of name with type t: "char comm[16]".
func declare(t *types.Type, name string) string {
	for depth := 0; depth < maxNesting; depth++ {
		e, err := t.Elem()
		if err != nil || t.Kind == types.Typedef {
			break
		}
		switch t.Kind {
		case types.Pointer:
			name = "*" + name
			if e.Kind == types.Array || e.Kind == types.FuncProto {
				name = "(" + name + ")"
			}
		case types.Array:
			name += fmt.Sprintf("[%d]", t.Len)
		}
		t = e
	}
	base := t.String()
	if t.Kind == types.FuncProto {
		// BTF has the arguments, but nobody reads offsets for them.
		base, name = "fn", name+"()"
	}
	if name == "" {
		return base
	}
	return base + " " + name
}
