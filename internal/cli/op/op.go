// Package op is the commands about operations.
package op

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

// NewGroup makes "lodge op".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("op", "Follow work under way", "  lodge op ls\n  lodge op wait ID", "operation", "operations")
	cmd.AddCommand(newLs(f), newShow(f), newWait(f), newCancel(f))
	return cmd
}

func newLs(f *cli.Factory) *cobra.Command {
	var (
		output cli.Output
		all    bool
	)
	cmd := &cobra.Command{
		Use: "ls", Short: "List operations under way", Aliases: []string{"list"}, Example: "  lodge op ls\n  lodge op ls --all",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			list, err := c.Operations(cmd.Context(), all)
			if err != nil {
				return err
			}
			now := time.Now()
			header := []string{"ID", "VERB", "SUBJECTS", "STATE", "BY", "CREATED", "TOOK"}
			return cli.PrintList(f, &output, list, header, func(o api.Operation) []string { return row(o, now) })
		},
	}
	output.Flags(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	return cmd
}

func row(o api.Operation, now time.Time) []string {
	state, took := o.State, ""
	if o.Problem != nil {
		state += " (" + o.Problem.Code + ")"
	}
	if o.Ended != nil {
		took = o.Ended.Sub(o.Created).Round(time.Millisecond).String()
	}
	subjects := o.Subjects
	if len(subjects) > 3 { // an operation on a thousand guests has one line too
		subjects = append(subjects[:3:3], "…")
	}
	return []string{o.ID, o.Verb, strings.Join(subjects, ","), state, o.By, cli.Ago(o.Created, now), took}
}

func newShow(f *cli.Factory) *cobra.Command {
	return cli.ShowCommand(f, "show ID", "Show all about an operation",
		"  lodge op show 01JD3Z", cli.OperationIDs, func(c *client.Client, ctx context.Context, id string) (api.Operation, error) {
			return c.Operation(ctx, id, 0)
		})
}

func newWait(f *cli.Factory) *cobra.Command {
	var wait cli.Waiting
	cmd := &cobra.Command{
		Use: "wait ID…", Short: "Wait until operations have ended",
		Long:              "Wait until operations have ended, and end as they did.",
		Example:           "  lodge op wait 01JD3Z\n  lodge op wait --timeout 1m 01JD3Z",
		Args:              cli.Some("ID"),
		ValidArgsFunction: f.Complete(0, cli.OperationIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if _, err := f.Follow(cmd.Context(), &wait, id); err != nil {
					return err
				}
			}
			return nil
		},
	}
	wait.LimitFlag(cmd, "timeout")
	return cmd
}

func newCancel(f *cli.Factory) *cobra.Command {
	return &cobra.Command{
		Use: "cancel ID…", Short: "Give operations up", Example: "  lodge op cancel 01JD3Z",
		Args:              cli.Some("ID"),
		ValidArgsFunction: f.Complete(0, cli.OperationIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			for _, id := range args {
				if _, err := c.CancelOperation(cmd.Context(), id); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
