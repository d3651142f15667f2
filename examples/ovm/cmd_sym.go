package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) symCommand() *cobra.Command {
	return a.jsonFlag(a.command("sym NAME", "Show the address of a kernel symbol, or the symbol at an address",
		"sym prints address, type letter and name of every kernel symbol called NAME. If NAME\n"+
			"is an address (0x…), it prints the symbol that the address lies in.",
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
					line := fmt.Sprintf("%016x %s %s", uint64(s.Address), s.Type, s.Name)
					if s.Offset != 0 {
						line += "+" + s.Offset.String()
					}
					if _, err := fmt.Fprintln(a.stdout, printable(line)); err != nil {
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
		return []symbol{{hex(addr - off), symbolType(k, name, addr-off), name, hex(off)}}, nil
	}
	var found []symbol
	for _, addr := range k.Guest().Symbols.LookupAll(arg) {
		found = append(found, symbol{hex(addr), symbolType(k, arg, addr), arg, 0})
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %s", kernel.ErrNoSymbol, arg)
	}
	return found, nil
}

// symbolType returns nm's letter of a symbol.
func symbolType(k *kernel.Kernel, name string, addr uint64) string {
	for s := range k.Guest().Symbols.All() {
		if s.Addr == addr && s.Name == name {
			return string(s.Type)
		}
	}
	return "?"
}
