package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

func (a *app) symCommand() *cobra.Command {
	return a.jsonFlag(a.command("sym NAME", "Show the address of a kernel symbol, or the symbol at an address",
		"sym prints address, type letter and name of every symbol called NAME, of the kernel and\n"+
			"of its modules. If NAME is an address (0x…), it prints the symbol that the address lies in.",
		func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				found, err := findSymbols(g.Kernel, args[0])
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(found)
				}
				for _, s := range found {
					line := printable(fmt.Sprintf("%016x %s %s", uint64(s.Address), s.Type, s.Name))
					if s.Offset != 0 {
						line += "+" + s.Offset.String()
					}
					if s.Module != "" {
						line += "\t[" + printable(s.Module) + "]"
					}
					if _, err := fmt.Fprintln(a.stdout, line); err != nil {
						return err
					}
				}
				return nil
			})
		}))
}

type symbol struct {
	Address hex    `json:"address"` // of the symbol, not of what was asked for
	Type    string `json:"type"`
	Name    string `json:"name"`
	Offset  hex    `json:"offset"`
	Module  string `json:"module"` // empty: the kernel itself
}

func findSymbols(k *kernel.Kernel, arg string) ([]symbol, error) {
	if strings.HasPrefix(arg, "0x") {
		addr, err := parseAddr(arg)
		if err != nil {
			return nil, err
		}
		name, off, ok := k.SymbolAt(kernel.Addr(addr))
		if !ok {
			return nil, fmt.Errorf("%s: %w there", arg, kernel.ErrNoSymbol)
		}
		name, module, _ := strings.Cut(strings.TrimSuffix(name, "]"), " [")
		table := k.Guest().Symbols
		if module != "" {
			m, err := k.Module(module)
			if err != nil {
				return nil, err
			}
			if table, err = m.Symbols(); err != nil {
				return nil, err
			}
		}
		return []symbol{{hex(addr - off), symbolType(table, name, addr-off), name, hex(off), module}}, nil
	}
	name, module, _ := strings.Cut(strings.TrimSuffix(arg, "]"), "[")
	name = strings.TrimSpace(name)
	var found []symbol
	add := func(t *symbols.Table, module string) {
		for _, addr := range t.LookupAll(name) {
			found = append(found, symbol{hex(addr), symbolType(t, name, addr), name, 0, module})
		}
	}
	if module == "" {
		add(k.Guest().Symbols, "")
	}
	for m, err := range k.Modules() {
		if err != nil {
			return nil, err
		}
		if module != "" && module != m.Name {
			continue
		}
		t, err := m.Symbols()
		if err != nil {
			return nil, err
		}
		add(t, m.Name)
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %s", kernel.ErrNoSymbol, arg)
	}
	return found, nil
}

// symbolType returns nm's letter of a symbol.
func symbolType(t *symbols.Table, name string, addr uint64) string {
	for s := range t.All() {
		if s.Addr == addr && s.Name == name {
			return string(s.Type)
		}
	}
	return "?"
}
