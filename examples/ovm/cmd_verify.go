package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/criuimg"
)

const longVerify = `verify reads every image in DIR and checks that they fit together: that what one image
refers to is there, that memory is complete, that nothing overlaps. It fails if CRIU
would not restore the set; warnings alone do not fail.`

func (a *app) verifyCommand() *cobra.Command {
	return a.jsonFlag(a.command("verify DIR", "Check a CRIU image set", longVerify,
		func(c *cobra.Command, args []string) error {
			set, err := criuimg.OpenDir(args[0])
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("%s: not an image set: %w", args[0], err)
			case err != nil:
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.printProblems(args[0], set)
		}))
}

// verifyProblem is an element of what verify --json prints.
type verifyProblem struct {
	Severity string `json:"severity"`
	File     string `json:"file"`
	What     string `json:"what"`
}

func (a *app) printProblems(dir string, set *criuimg.Set) error {
	all := []verifyProblem{}
	errs := 0
	for _, p := range set.Verify() {
		if p.Severity == criuimg.Error {
			errs++
		}
		all = append(all, verifyProblem{p.Severity.String(), p.File, p.What})
	}
	if err := a.writeProblems(set, all); err != nil {
		return err
	}
	if errs > 0 {
		return fmt.Errorf("%s: %s", dir, count(errs, "error"))
	}
	return nil
}

func (a *app) writeProblems(set *criuimg.Set, all []verifyProblem) error {
	if a.json {
		return a.printJSON(all)
	}
	for _, p := range all {
		if _, err := fmt.Fprintln(a.stdout, printable(fmt.Sprintf("%s: %s: %s", p.Severity, p.File, p.What))); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		return nil
	}
	var size int64
	images := set.Images()
	for _, i := range images {
		size += i.Size
	}
	_, err := fmt.Fprintf(a.stdout, "%s, %s: no problem found\n", count(len(images), "image"), formatSize(uint64(size)))
	return err
}

// count writes "1 error" or "2 errors".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
