package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
)

// ShowCommand makes the verb show of a noun: it gets one thing by its name and
// prints all that is known of it. use is the usage line: "show POOL".
func ShowCommand[T any](f *Factory, use, short, example string, names func(context.Context, *client.Client) ([]string, error),
	get func(c *client.Client, ctx context.Context, name string) (T, error)) *cobra.Command {
	var output Output
	_, what, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Aliases: []string{"inspect"},
		Args:              Named(what),
		ValidArgsFunction: f.Complete(1, names),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			t, err := get(c, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.PrintObject(&output, t)
		},
	}
	output.Flags(cmd)
	return cmd
}

// ListCommand makes the verb ls of a noun that stands by itself: a line for each.
func ListCommand[T any](f *Factory, short, example string, header []string,
	list func(c *client.Client, ctx context.Context) ([]T, error), row func(T) []string) *cobra.Command {
	var output Output
	cmd := &cobra.Command{
		Use: "ls", Short: short, Example: example, Aliases: []string{"list"},
		Args: Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			all, err := list(c, cmd.Context())
			if err != nil {
				return err
			}
			return PrintList(f, &output, all, header, row)
		},
	}
	output.Flags(cmd)
	return cmd
}

// RemoveCommand makes the verb rm of a noun: it removes what is named, however
// many. use is the usage line: "rm POOL…".
func RemoveCommand(f *Factory, use, short, example string, names func(context.Context, *client.Client) ([]string, error),
	remove func(c *client.Client, ctx context.Context, name string, wait time.Duration) (api.Operation, error)) *cobra.Command {
	var wait Waiting
	_, what, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Aliases: []string{"delete"},
		Args:              Some(strings.TrimSuffix(what, "…")),
		ValidArgsFunction: f.Complete(0, names),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.Each(cmd.Context(), &wait, args, func(ctx context.Context, c *client.Client, name string, w time.Duration) (api.Operation, error) {
				return remove(c, ctx, name, w)
			})
		},
	}
	wait.Flags(cmd)
	return cmd
}
