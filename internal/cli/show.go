package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

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
