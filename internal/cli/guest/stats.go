package guest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

type statsOptions struct {
	*cli.Factory
	output cli.Output
	once   bool
}

func newStats(f *cli.Factory) *cobra.Command {
	o := &statsOptions{Factory: f}
	cmd := &cobra.Command{
		Use: "stats [GUEST…]", Short: "Show what guests use, again every second",
		Long:              "Show what running guests use. CPU% is of one processor; rates are over the time since the line before.",
		Example:           "  lodge stats\n  lodge stats --no-stream web1 -o json",
		ValidArgsFunction: completeGuests(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), args)
		},
	}
	cmd.Flags().BoolVar(&o.once, "no-stream", false, "only once")
	o.output.Flags(cmd)
	return cmd
}

// readUsage reads what the named guests use, or all.
func readUsage(ctx context.Context, c *client.Client, names []string) ([]api.Usage, error) {
	if len(names) == 0 {
		return c.Usage(ctx)
	}
	if len(names) > together {
		all, err := c.Usage(ctx)
		return slices.DeleteFunc(all, func(u api.Usage) bool { return !slices.Contains(names, u.Name) }), err
	}
	var list []api.Usage
	for _, n := range names {
		u, err := c.GuestUsage(ctx, n)
		if err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	return list, nil
}

// together is up to how many guests are asked for one by one.
const together = 8

func (o *statsOptions) run(ctx context.Context, names []string) error {
	c, err := o.Client()
	if err != nil {
		return err
	}
	before, err := readUsage(ctx, c, names)
	if err != nil {
		return err
	}
	gap := sampleGap
	for {
		if err := sleep(ctx, gap); err != nil {
			return err
		}
		now, err := readUsage(ctx, c, names)
		if err != nil {
			return err
		}
		list := loads(before, now)
		sortLoads(list, order{key: 'n'})
		if o.Streams.OutTTY && !o.once && o.output.Table() {
			fmt.Fprint(o.Streams.Out, "\x1b[H\x1b[J")
		}
		if err := o.Print(&o.output, list, func() *cli.Table { return loadTable(list) }); err != nil || o.once {
			return err
		}
		before, gap = now, time.Second
	}
}

// sleep waits, or returns why it was woken.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
