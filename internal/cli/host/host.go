// Package host is the commands about the host and about lodged itself.
package host

import (
	"fmt"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/internal/cli"
)

// Commands makes the commands for the top of the command line.
func Commands(f *cli.Factory) []*cobra.Command {
	return []*cobra.Command{newGroup(f), newDoctor(f), newEvents(f), newVersion(f)}
}

func newGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("host", "Look at the host", "  lodge host show")
	var output cli.Output
	show := &cobra.Command{
		Use: "show", Short: "Show the host and its engines", Example: "  lodge host show\n  lodge host show -o json",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			h, err := c.Host(cmd.Context())
			if err != nil {
				return err
			}
			return f.PrintObject(&output, h)
		},
	}
	output.Flags(show)
	cmd.AddCommand(show)
	return cmd
}

// NewGraph makes "graph" of "lodge debug".
func NewGraph(f *cli.Factory) *cobra.Command {
	return &cobra.Command{
		Use: "graph", Short: "Print which reconciler reads and writes what", Example: "  lodge debug graph",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			text, err := c.Graph(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(f.Streams.Out, text)
			return err
		},
	}
}

func newDoctor(f *cli.Factory) *cobra.Command {
	var (
		output cli.Output
		fix    bool
	)
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check whether the host is fit for guests",
		Long: `Check kernel, control groups, limits, firewall, disk and clock. A fault comes with
its cause and the command that cures it. The exit status is 1 if there are faults.`,
		Example: "  lodge doctor\n  lodge doctor --fix",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			checks, err := c.Doctor(cmd.Context(), fix)
			if err != nil {
				return err
			}
			if checks == nil {
				checks = []api.Check{}
			}
			if err := f.Print(&output, checks, func() *cli.Table { return doctorTable(checks) }); err != nil {
				return err
			}
			for _, c := range checks {
				if c.State == "fault" && !c.Fixed {
					return cli.Exit(cli.ExitFailed)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "cure what can be cured; the values before are kept")
	output.Flags(cmd)
	return cmd
}

// doctorTable shows what is well in a line, and what is not with cause and cure
// below it.
func doctorTable(checks []api.Check) *cli.Table {
	marks := map[string]string{"ok": "✔", "warning": "!", "fault": "✘"}
	t := &cli.Table{Header: []string{cli.Blank, "GROUP", "CHECK", "FOUND"}}
	for _, c := range checks {
		mark := marks[c.State]
		found := c.Found
		if c.Fixed {
			mark, found = "✔", found+" (cured; was "+c.Before+")"
		}
		t.Row(mark, c.Group, c.Name, found)
		if c.State == "ok" || c.Fixed {
			continue
		}
		if c.Cause != "" {
			t.Row(cli.Blank, cli.Blank, cli.Blank, "cause: "+c.Cause)
		}
		if c.Fix != "" {
			t.Row(cli.Blank, cli.Blank, cli.Blank, "cure: "+c.Fix)
		}
	}
	return t
}

// versions is what both programs are.
type versions struct {
	Client string `json:"client"`
	Server string `json:"server,omitempty"`
	API    string `json:"api,omitempty"`
}

func newVersion(f *cli.Factory) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of lodge and lodged",
		Example: "  lodge version\n  lodge version -o json\n  lodge --version",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: f.Version}
			c, err := f.Client()
			if err != nil {
				return err
			}
			server, err := c.Version(cmd.Context())
			v.Server, v.API = server.Version, server.API
			if perr := f.Print(&output, v, func() *cli.Table {
				t := &cli.Table{}
				t.Row("lodge", v.Client)
				if err == nil {
					t.Row("lodged", v.Server)
					t.Row("api", v.API)
				}
				return t
			}); perr != nil {
				return perr
			}
			return err
		},
	}
	output.Flags(cmd)
	return cmd
}
