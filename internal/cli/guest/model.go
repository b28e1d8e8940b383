package guest

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

func newModel(f *cli.Factory) *cobra.Command {
	var (
		ask    api.ModelWish
		wait   cli.Waiting
		dry    bool
		output cli.Output
	)
	cmd := &cobra.Command{
		Use: "model GUEST vm|paravirt|os", Short: "Make a guest one of another model",
		Long: "Make a guest a virtual machine, a paravirtual machine or a guest of the host's kernel.\n" +
			"It keeps its name, addresses, limits, snapshots, published ports and files.\n" +
			"What cannot be carried out leaves it as it was.",
		Example:           "  lodge model web1 vm --dry-run\n  lodge model web1 vm --restart\n  lodge model web1 os",
		Args:              modelArgs,
		ValidArgsFunction: completeModel(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			ask.Model = args[1]
			if dry {
				return foresee(cmd.Context(), f, &output, args[0], ask)
			}
			_, err := building(cmd.Context(), f, &wait, "", func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.ChangeModel(ctx, args[0], ask, w)
			})
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&ask.Engine, "engine", "", "what runs it (default: the first for the model that can run here)")
	fl.BoolVar(&ask.Restart, "restart", false, "stop the guest for it and start it again")
	fl.BoolVar(&dry, "dry-run", false, "only say what it would mean")
	output.Flags(cmd)
	wait.Flags(cmd)
	return cmd
}

// models are the words for them, as they are completed.
var models = []string{"vm", "paravirt", "os"}

func modelArgs(cmd *cobra.Command, args []string) error {
	if err := cli.Named("GUEST", "MODEL")(cmd, args); err != nil {
		return err
	}
	if !slices.Contains(models, args[1]) {
		return cli.Usagef(cmd, "%q is no model; there are %s", args[1], strings.Join(models, ", "))
	}
	return nil
}

func completeModel(f *cli.Factory) cobra.CompletionFunc {
	guests := completeGuest(f)
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return models, cobra.ShellCompDirectiveNoFileComp
		}
		return guests(cmd, args, begun)
	}
}

func foresee(ctx context.Context, f *cli.Factory, output *cli.Output, name string, ask api.ModelWish) error {
	c, err := f.Client()
	if err != nil {
		return err
	}
	m, err := c.ForeseeModel(ctx, name, ask.Model, ask.Engine)
	if err != nil {
		return err
	}
	if err := f.Print(output, m, func() *cli.Table { return foreseen(m, ask.Restart) }); err != nil {
		return err
	}
	if m.Refusal != "" && output.Table() {
		return &api.Error{Kind: "conflict", Detail: "it cannot be: " + m.Refusal, Hint: m.Hint}
	}
	return nil
}

// foreseen says to a person what a change of model would mean.
func foreseen(m api.ModelChange, restart bool) *cli.Table {
	t := &cli.Table{}
	t.Row("guest", m.Name)
	t.Row("model", m.From+" -> "+m.To)
	t.Row("engine", m.Engine)
	if m.Copies {
		most := ""
		if m.Running && m.From != "os" { // what is in its volume shows once it rests
			most = "at most "
		}
		t.Row("copied", most+fmt.Sprintf("%d files, %s, in about %.0f s", m.Files, units.Bytes(m.Bytes), math.Ceil(m.Seconds)))
		t.Row("room", fmt.Sprintf("%s are needed on the pool for a moment, %s are free", units.Bytes(m.NeedsBytes), units.Bytes(m.FreeBytes)))
	} else {
		t.Row("copied", "nothing: its private data has the form already, or none was written")
	}
	switch {
	case m.Running && restart:
		t.Row("restarted", "once")
	case m.Running:
		t.Row("restarted", "it runs: add --restart, or stop it first")
	}
	for i, what := range m.Changes {
		if i == 0 {
			t.Row("then", what)
		} else {
			t.Row(cli.Blank, what)
		}
	}
	return t
}
