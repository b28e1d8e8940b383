package guest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

func newLs(f *cli.Factory) *cobra.Command {
	var (
		output cli.Output
		labels []string
		quiet  bool
		all    bool
	)
	cmd := &cobra.Command{
		Use: "ls", Short: "List guests", Aliases: []string{"ps", "list"},
		Example: `  lodge ls
  lodge ls --label tier=front -o json`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			list, _, err := c.Guests(cmd.Context(), labels...)
			if err != nil {
				return err
			}
			if quiet {
				for _, g := range list {
					fmt.Fprintln(f.Streams.Out, g.Name)
				}
				return nil
			}
			now, accel := time.Now(), accelerations(cmd.Context(), c, list)
			header := []string{"NAME", "MODEL", "IMAGE", "PHASE", "ADDRESSES", "CPUS", "MEMORY", "HOST", "CREATED"}
			return cli.PrintList(f, &output, list, header, func(g api.Guest) []string { return lsRow(g, accel[g.Engine], now) })
		},
	}
	output.Flags(cmd)
	cmd.Flags().StringSliceVarP(&labels, "label", "l", nil, "only those with this label (KEY=VALUE)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only the names")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also stopped ones; always so, and here for the habit of docker")
	return cmd
}

// accelerations tells by engine how the processors of virtual machines are made,
// in a word. Where there are none nobody is asked.
func accelerations(ctx context.Context, c *client.Client, list []api.Guest) map[string]string {
	words := map[string]string{}
	if !slices.ContainsFunc(list, func(g api.Guest) bool { return g.Model == "vm" }) {
		return words
	}
	all, err := c.Engines(ctx)
	if err != nil {
		return words // it is a detail
	}
	for _, e := range all {
		for _, f := range e.Facts {
			if word, _, ok := strings.Cut(f.Value, ":"); ok && f.Name == "acceleration" {
				words[e.Name] = word
			}
		}
	}
	return words
}

func lsRow(g api.Guest, accel string, now time.Time) []string {
	model := g.Model
	if accel != "" {
		model += " (" + accel + ")"
	}
	return []string{g.Name, model, g.Image, phase(g), strings.Join(g.Addresses, ","), cpus(g.CPUs), memory(g.MemoryBytes), g.Host, cli.Ago(g.Created, now)}
}

// phase is where the guest is, what is being done with it, and what keeps it
// from where it should be.
func phase(g api.Guest) string {
	p := g.Phase
	if g.Doing != "" {
		p += ", " + g.Doing
	}
	if g.Problem != nil {
		p += " (" + g.Problem.Code + ")"
	}
	return p
}

func cpus(n float64) string {
	if n == 0 {
		return "all"
	}
	return strconv.FormatFloat(n, 'f', -1, 64)
}

// memory writes a memory limit, of which 0 is all of the host's.
func memory(n uint64) string {
	if n == 0 {
		return "all"
	}
	return units.Bytes(n)
}
