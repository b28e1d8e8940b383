// Package snapshot is the commands about snapshots of guests.
package snapshot

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

// NewGroup makes "lodge snapshot".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("snapshot", "Keep moments of guests and go back to them",
		"  lodge snapshot create web1 before-upgrade\n  lodge snapshot restore web1 before-upgrade --start", "snapshots", "snap")
	cmd.AddCommand(newCreate(f), newLs(f), newShow(f), newRestore(f), newRm(f))
	return cmd
}

func newCreate(f *cli.Factory) *cobra.Command {
	var (
		ask  api.SnapshotCreate
		wait cli.Waiting
	)
	cmd := &cobra.Command{
		Use: "create GUEST [NAME]", Short: "Take a snapshot of a guest", Aliases: []string{"take"},
		Long: "Keep what a guest's files are at this moment. One that runs writes everything to its disks first, if it can be\n" +
			"asked, and is halted for the moment; it runs on. With --memory, what it is doing is kept too.",
		Example:           "  lodge snapshot create web1\n  lodge snapshot create web1 before-upgrade --note 'with the old database'\n  lodge snapshot create vm1 warm --memory",
		Args:              cli.Args(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: f.Complete(1, cli.GuestNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				ask.Name = args[1]
			}
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.CreateSnapshot(ctx, args[0], ask, w)
			})
			return err
		},
	}
	cmd.Flags().BoolVar(&ask.Memory, "memory", false, "with what the guest is doing (model vm)")
	cmd.Flags().StringVar(&ask.Note, "note", "", "what it is for")
	wait.Flags(cmd)
	return cmd
}

func newLs(f *cli.Factory) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use: "ls GUEST", Short: "List a guest's snapshots", Aliases: []string{"list"}, Example: "  lodge snapshot ls web1",
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: f.Complete(1, cli.GuestNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			list, err := c.Snapshots(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			header := []string{"NAME", "TAKEN", "MODEL", "MEMORY", "AT REST", "STATE", "NOTE"}
			return cli.PrintList(f, &output, list, header, func(s api.Snapshot) []string {
				memory := "no"
				if s.Memory {
					memory = "yes"
				}
				return []string{s.Name, cli.Since(s.Taken), s.Model, memory, s.Rest, cli.State(s.Ready, "taking", s.Problem), s.Note}
			})
		},
	}
	output.Flags(cmd)
	return cmd
}

func newShow(f *cli.Factory) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use: "show GUEST SNAPSHOT", Short: "Show all about a snapshot", Aliases: []string{"inspect"}, Example: "  lodge snapshot show web1 before-upgrade",
		Args:              cli.Named("GUEST", "SNAPSHOT"),
		ValidArgsFunction: complete(f, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			s, err := c.Snapshot(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			return f.PrintObject(&output, s)
		},
	}
	output.Flags(cmd)
	return cmd
}

func newRestore(f *cli.Factory) *cobra.Command {
	var (
		ask  api.SnapshotRestore
		wait cli.Waiting
	)
	cmd := &cobra.Command{
		Use: "restore GUEST SNAPSHOT", Short: "Take a guest back to a snapshot",
		Long: "Make a guest's files what they were when the snapshot was taken; what was written since is gone.\n" +
			"A snapshot can be gone back to whatever model the guest is of by now. One that was taken with\n" +
			"--memory goes on where it was with the next start, if the guest is of model vm.",
		Example:           "  lodge snapshot restore web1 before-upgrade\n  lodge snapshot restore web1 before-upgrade --start",
		Args:              cli.Named("GUEST", "SNAPSHOT"),
		ValidArgsFunction: complete(f, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.RestoreSnapshot(ctx, args[0], args[1], ask, w)
			})
			return err
		},
	}
	cmd.Flags().BoolVar(&ask.Start, "start", false, "let it run afterwards; one that runs is taken down for it")
	wait.Flags(cmd)
	return cmd
}

func newRm(f *cli.Factory) *cobra.Command {
	var wait cli.Waiting
	cmd := &cobra.Command{
		Use: "rm GUEST SNAPSHOT…", Short: "Remove snapshots of a guest", Aliases: []string{"delete"}, Example: "  lodge snapshot rm web1 before-upgrade",
		Args:              cli.Some("GUEST", "SNAPSHOT"),
		ValidArgsFunction: complete(f, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.Each(cmd.Context(), &wait, args[1:], func(ctx context.Context, c *client.Client, name string, w time.Duration) (api.Operation, error) {
				return c.DeleteSnapshot(ctx, args[0], name, w)
			})
		},
	}
	wait.Flags(cmd)
	return cmd
}

// complete completes a guest, and then its snapshots.
func complete(f *cli.Factory, limit int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return f.Complete(1, cli.GuestNames)(cmd, args, begun)
		}
		return f.Complete(limit, func(ctx context.Context, c *client.Client) ([]string, error) {
			list, err := c.Snapshots(ctx, args[0])
			names := make([]string, len(list))
			for i, s := range list {
				names[i] = s.Name
			}
			return names, err
		})(cmd, args, begun)
	}
}
