package guest

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

// powerOptions are those of the verbs that change whether guests run.
type powerOptions struct {
	*cli.Factory
	selection
	wait    cli.Waiting
	force   bool
	timeout cli.SecondsFlag
	ask     func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error)
}

func (o *powerOptions) command(use, short, example string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " GUEST…", Short: short, Example: example,
		ValidArgsFunction: completeGuests(o.Factory),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.take(cmd, args); err != nil {
				return err
			}
			return o.run(cmd.Context())
		},
	}
	o.selection.flags(cmd)
	o.wait.Flags(cmd)
	return cmd
}

func (o *powerOptions) run(ctx context.Context) error {
	names, err := o.resolve(ctx, o.Factory)
	if err != nil {
		return err
	}
	return o.Each(ctx, &o.wait, names, func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return o.ask(ctx, c, name, wait)
	})
}

func newStart(f *cli.Factory) *cobra.Command {
	o := &powerOptions{Factory: f}
	o.ask = func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return c.StartGuest(ctx, name, wait)
	}
	return o.command("start", "Switch guests on", "  lodge start web1 web2\n  lodge start --label tier=front")
}

func newStop(f *cli.Factory) *cobra.Command {
	o := &powerOptions{Factory: f}
	o.ask = func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return c.StopGuest(ctx, name, api.GuestStop{Force: o.force, Timeout: o.timeout.Value}, wait)
	}
	cmd := o.command("stop", "Take guests down", "  lodge stop web1\n  lodge stop --timeout 2m db1\n  lodge stop --force --all")
	cmd.Long = "Ask guests to shut down. One that takes longer than its stop time-out is ended."
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "end them at once, without a clean stop")
	cmd.Flags().VarP(&o.timeout, "timeout", "t", "how long the clean stop may take (default: the guest's own, 30s)")
	cmd.MarkFlagsMutuallyExclusive("force", "timeout")
	return cmd
}

func newRestart(f *cli.Factory) *cobra.Command {
	o := &powerOptions{Factory: f}
	o.ask = func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return c.RestartGuest(ctx, name, o.force, wait)
	}
	cmd := o.command("restart", "Stop guests and start them again", "  lodge restart web1\n  lodge restart --force web1")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "without a clean stop")
	return cmd
}

func newPause(f *cli.Factory) *cobra.Command {
	o := &powerOptions{Factory: f}
	o.ask = func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return c.PauseGuest(ctx, name, wait)
	}
	return o.command("pause", "Freeze guests in memory", "  lodge pause web1\n  lodge resume web1")
}

func newResume(f *cli.Factory) *cobra.Command {
	o := &powerOptions{Factory: f}
	o.ask = func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return c.ResumeGuest(ctx, name, wait)
	}
	cmd := o.command("resume", "Let paused guests run on", "  lodge resume web1")
	cmd.Aliases = []string{"unpause"}
	return cmd
}

func newRm(f *cli.Factory) *cobra.Command {
	o := &powerOptions{Factory: f}
	o.ask = func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return c.DeleteGuest(ctx, name, o.force, wait)
	}
	cmd := o.command("rm", "Remove guests and their writable layers", "  lodge rm web1\n  lodge rm --force web1 web2")
	cmd.Long = "Remove guests with all that was written in them. Only stopped ones, unless forced."
	cmd.Aliases = []string{"delete"}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "also those that run")
	return cmd
}

func newRename(f *cli.Factory) *cobra.Command {
	var wait cli.Waiting
	cmd := &cobra.Command{
		Use: "rename GUEST NEW-NAME", Short: "Give a guest another name",
		Example:           "  lodge rename web1 www",
		Args:              cli.Named("GUEST", "NEW-NAME"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.RenameGuest(ctx, args[0], args[1], w)
			})
			return err
		},
	}
	wait.Flags(cmd)
	return cmd
}
