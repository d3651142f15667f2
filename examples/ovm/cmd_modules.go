package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) modulesCommand() *cobra.Command {
	params := false
	c := a.jsonFlag(a.command("modules", "List the loaded modules of the kernel",
		"modules lists what /proc/modules does. Parameters whose type is the module's own are\n"+
			"shown without a value.",
		func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				all, err := readModules(g.Kernel)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(all)
				}
				return printModules(a, all, params)
			})
		}))
	c.Flags().BoolVar(&params, "params", false, "show parameters too")
	return c
}

// module is an element of what modules --json prints.
type module struct {
	Name       string        `json:"name"`
	Size       uint64        `json:"size"` // bytes
	RefCount   int           `json:"refcnt"`
	UsedBy     []string      `json:"used_by"`
	Permanent  bool          `json:"permanent"`
	State      string        `json:"state"`
	Base       hex           `json:"base"`
	Taints     string        `json:"taints"`
	Version    string        `json:"version"`
	SrcVersion string        `json:"srcversion"`
	BuildID    string        `json:"build_id"`
	Params     []moduleParam `json:"params"`
}

type moduleParam struct {
	Name  string  `json:"name"`
	Value *string `json:"value"` // null if it is not known
}

func readModules(k *kernel.Kernel) ([]module, error) {
	all := []module{}
	for m, err := range k.Modules() {
		if err != nil {
			return nil, err
		}
		out, err := newModule(m)
		if err != nil {
			return nil, err
		}
		all = append(all, out)
	}
	return all, nil
}

func newModule(m *kernel.Module) (out module, err error) {
	out = module{
		Name: m.Name, Size: m.Size(), RefCount: m.RefCount(), Permanent: m.Permanent(), State: m.State.String(),
		Base: hex(m.Base()), Taints: m.TaintLetters(), Params: []moduleParam{},
	}
	if out.UsedBy, err = m.UsedBy(); err != nil {
		return out, err
	}
	if out.Version, out.SrcVersion, err = m.Version(); err != nil {
		return out, err
	}
	id, err := m.BuildID()
	if err != nil {
		return out, err
	}
	out.BuildID = fmt.Sprintf("%x", id)
	params, err := m.Params()
	if err != nil {
		return out, err
	}
	for _, p := range params {
		param := moduleParam{Name: p.Name}
		if p.Known {
			param.Value = &p.Value
		}
		out.Params = append(out.Params, param)
	}
	return out, nil
}

func printModules(a *app, all []module, params bool) error {
	heads := []any{"MODULE", "SIZE", "USED", "STATE", "BASE", "TAINTS", "BY"}
	if params {
		heads = append(heads, "PARAMETERS")
	}
	t := newTable(a.stdout, heads...)
	for _, m := range all {
		by := m.UsedBy
		if m.Permanent {
			by = append(by, "[permanent]")
		}
		row := []any{m.Name, m.Size, m.RefCount, m.State, m.Base, m.Taints, strings.Join(by, ",")}
		if params {
			row = append(row, paramList(m.Params))
		}
		t.row(row...)
	}
	return t.flush()
}

func paramList(params []moduleParam) string {
	var s []string
	for _, p := range params {
		if p.Value == nil {
			s = append(s, p.Name)
		} else {
			s = append(s, p.Name+"="+*p.Value)
		}
	}
	return strings.Join(s, " ")
}
