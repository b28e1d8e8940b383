// Package engine is the commands about what runs guests.
package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

// NewGroup makes "lodge engine".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("engine", "Look at what runs guests here, and why it may not", "  lodge engine ls\n  lodge engine show oslevel", "engines")
	cmd.AddCommand(newLs(f), newShow(f), newProbe(f))
	return cmd
}

var header = []string{"ENGINE", "MODEL", "RUNS HERE", "VERSION"}

func row(e api.Engine) []string {
	runs := "yes"
	if !e.Usable {
		runs = "no: " + e.Missing
	}
	return []string{e.Name, e.Model, runs, e.Version}
}

// abilities lists what an engine can do, in order.
func abilities(e api.Engine) (all []string) {
	for _, name := range slices.Sorted(maps.Keys(e.Can)) {
		if e.Can[name] {
			all = append(all, name)
		}
	}
	return all
}

// print writes engines as a table with a hint below what does not run, or as
// they are.
func print(f *cli.Factory, output *cli.Output, list []api.Engine) error {
	if !output.Table() {
		return cli.PrintList(f, output, list, nil, nil)
	}
	t := &cli.Table{Header: header}
	for _, e := range list {
		t.Row(row(e)...)
		if !e.Usable && e.Hint != "" {
			t.Row(cli.Blank, cli.Blank, "hint: "+e.Hint, cli.Blank)
		}
	}
	return t.Write(f.Streams.Out)
}

func newLs(f *cli.Factory) *cobra.Command {
	return list(f, "ls", "List the engines: for which model, and whether they run here", "  lodge engine ls\n  lodge engine ls -o json | jq '.[] | select(.usable).name'", (*client.Client).Engines)
}

func newProbe(f *cli.Factory) *cobra.Command {
	cmd := list(f, "probe", "Find out anew what can run guests here, after something was installed", "  apt-get install qemu-system-x86\n  lodge engine probe", (*client.Client).ProbeEngines)
	cmd.Aliases = nil
	return cmd
}

func list(f *cli.Factory, use, short, example string, get func(*client.Client, context.Context) ([]api.Engine, error)) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Aliases: []string{"list"},
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			all, err := get(c, cmd.Context())
			if err != nil {
				return err
			}
			return print(f, &output, all)
		},
	}
	output.Flags(cmd)
	return cmd
}

func newShow(f *cli.Factory) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use: "show ENGINE", Short: "Show all about an engine", Aliases: []string{"inspect"},
		Example:           "  lodge engine show oslevel\n  lodge engine show oslevel -o yaml",
		Args:              cli.Named("ENGINE"),
		ValidArgsFunction: f.Complete(1, cli.EngineNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			e, err := c.Engine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.Print(&output, e, func() *cli.Table { return details(e) })
		},
	}
	output.Flags(cmd)
	return cmd
}

// listWidth keeps lists beside their names within a terminal.
const listWidth = 64

// details is everything about an engine, one thing a line.
func details(e api.Engine) *cli.Table {
	t := &cli.Table{}
	add := func(name, value string) {
		for _, line := range folded(value) {
			t.Row(name, line)
			name = ""
		}
	}
	add("name", e.Name)
	add("model", e.Model)
	add("version", e.Version)
	if e.Usable {
		add("runs here", "yes")
	} else {
		add("runs here", "no: "+e.Missing)
		add("hint", e.Hint)
	}
	list := func(name string, words []string) {
		for _, line := range cli.Fold(words, listWidth) {
			add(name, line)
			name = cli.Blank
		}
	}
	list("can", abilities(e))
	for _, f := range e.Facts {
		add(f.Name, f.Value)
	}
	if e.Kernel != "" {
		add("kernels", e.Kernel+"/… (lodge kernel ls)")
	}
	add("layer", e.Form)
	if e.Overhead > 0 {
		words := units.Bytes(e.Overhead) + " of memory"
		if e.OverheadCPUs > 0 {
			words += fmt.Sprintf(" and the time of %g processor", e.OverheadCPUs)
		}
		add("overhead", words+" for each guest's monitor")
	}
	for _, m := range e.Machines {
		words := m.Name
		if len(m.Firmware) > 0 {
			words += " (" + strings.Join(m.Firmware, ", ") + ")"
		}
		if m.TPM {
			words += ", TPM"
		}
		add("machine", words)
	}
	list("processors", e.CPUModels)
	list("debug", e.Debugs)
	return t
}

// lineMax is how long a line of what an engine is may be.
const lineMax = 80

// folded breaks a long list into lines, behind its commas; nothing for "".
func folded(list string) (lines []string) {
	if list == "" {
		return nil
	}
	line := ""
	for word := range strings.SplitSeq(list, ", ") {
		switch {
		case line == "":
			line = word
		case len(line)+len(", ")+len(word) > lineMax:
			lines = append(lines, line+",")
			line = word
		default:
			line += ", " + word
		}
	}
	return append(lines, line)
}
