package main

import (
	"bufio"

	"github.com/spf13/cobra"
)

const longObj = `obj prints the kernel object that a C expression stands for. Expressions begin with
  task(PID)             the task_struct of a process or thread
  percpu(NAME, CPU)     a CPU's instance of a per-CPU variable
  SYMBOL                a kernel variable; write (struct NAME *)SYMBOL if its type is not known
and go on with .member, ->member and [index]; pointers are followed by both. For example
  obj 'task(1).comm'
  obj 'task(1234).mm.start_code'
  obj '*init_task.cred'
  obj '((struct list_head *)modules)->next'`

func (a *app) objCommand() *cobra.Command {
	p := objPrinter{}
	c := a.command("obj EXPR", "Show a kernel object", longObj,
		func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				v, err := eval(g.Kernel, args[0])
				if err != nil {
					return err
				}
				n, err := p.node(g.Kernel, v)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(objJSON{args[0], n.typ, hex(n.addr), n})
				}
				w := bufio.NewWriter(a.stdout)
				n.print(w, printable(args[0]), 0)
				return w.Flush()
			})
		})
	c.Flags().IntVar(&p.depth, "depth", 2, "show structs inside structs `N` levels deep")
	c.Flags().IntVar(&p.elements, "elements", 16, "show the first `N` elements of arrays")
	return a.jsonFlag(c)
}

// objJSON is what obj --json prints. Pointers are strings, other numbers are
// numbers, and what cannot be read is null.
type objJSON struct {
	Expr    string `json:"expr"`
	Type    string `json:"type"`
	Address hex    `json:"address"`
	Value   *node  `json:"value"`
}
