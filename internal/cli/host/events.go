package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

type eventOptions struct {
	*cli.Factory
	follow bool
	since  int64
	kind   string
	form   cli.OneOf
}

func newEvents(f *cli.Factory) *cobra.Command {
	o := &eventOptions{Factory: f, form: cli.OneOf{Value: "table", Words: []string{"table", "json"}}}
	cmd := &cobra.Command{
		Use: "events", Short: "Show what changes",
		Long: `Show changes of guests, images, networks and the rest, as they are kept since a
revision; with -f go on with what comes. Without -f and --since it shows all that
is kept, with -f alone only what comes. Each line begins with its revision.`,
		Example: "  lodge events -f\n  lodge events --since 1200 --kind guest\n  lodge events -f -o json | jq .name",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.since < 0 {
				return cli.Usagef(cmd, "--since must be a revision")
			}
			return o.run(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	fl.Int64Var(&o.since, "since", 0, "only what came after this revision")
	fl.StringVar(&o.kind, "kind", "", "only of this kind: guest, image, kernel, network, pool, forward, snapshot, operation")
	o.form.Var(cmd, "output", "o", "how to print; json is an object a line")
	return cmd
}

// How long the stream may be silent before all that was kept has come. The
// revision that the list was read at may be that of something not shown, so that
// it never comes; once it has come, only others of the same revision may follow.
const (
	quiet     = 500 * time.Millisecond
	quietLast = 50 * time.Millisecond
)

func (o *eventOptions) run(ctx context.Context) error {
	c, err := o.Client()
	if err != nil {
		return err
	}
	if o.follow {
		for e, err := range c.Events(ctx, client.EventOptions{Since: o.since, Kind: o.kind}) {
			if err != nil {
				return err
			}
			if err := o.print(e); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	}
	_, last, err := c.Guests(ctx)
	if err != nil {
		return err
	}
	if o.since > 0 {
		return o.kept(ctx, c, o.since, last)
	}
	// Where the kept ones begin is not told; half the way is tried each time.
	for since := int64(1); ; since += (last - since + 1) / 2 {
		err := o.kept(ctx, c, since, last)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind != api.KindConflict || since >= last {
			return err
		}
	}
}

// kept prints the events after since up to the revision last.
func (o *eventOptions) kept(ctx context.Context, c *client.Client, since, last int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(quiet, func() { cancel(errQuiet) })
	defer idle.Stop()
	for e, err := range c.Events(ctx, client.EventOptions{Since: since, Kind: o.kind}) {
		if err != nil {
			return err
		}
		if e.Type == "progress" {
			continue
		}
		if err := o.print(e); err != nil || e.Rev > last {
			return err
		}
		idle.Reset(quiet)
		if e.Rev == last {
			idle.Reset(quietLast)
		}
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errQuiet) {
		return cause
	}
	return nil
}

var errQuiet = errors.New("no more events")

func (o *eventOptions) print(e api.Event) error {
	if o.form.Value == "json" {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(o.Streams.Out, "%s\n", b)
		return err
	}
	what := e.Message
	if e.Type == "deleted" {
		what = "deleted"
	}
	if e.Progress != nil {
		what = cli.Step(*e.Progress)
	}
	_, err := fmt.Fprintf(o.Streams.Out, "%d %s %s/%s %s\n", e.Rev, e.At.Local().Format(time.RFC3339), e.Kind, e.Name, cli.Clean(what))
	return err
}
