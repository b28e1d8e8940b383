package guest

import (
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"lodge/internal/cli"
)

func newLogs(f *cli.Factory) *cobra.Command {
	var (
		follow bool
		tail   string
	)
	cmd := &cobra.Command{
		Use: "logs GUEST", Short: "Show what a guest wrote to its console",
		Example:           "  lodge logs web1 --tail 20\n  lodge logs -f web1",
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			lines := -1
			if tail != "all" {
				n, err := strconv.Atoi(tail)
				if err != nil || n < 0 {
					return cli.Usagef(cmd, "--tail %q: must be a number of lines, or all", tail)
				}
				lines = n
			}
			c, err := f.Client()
			if err != nil {
				return err
			}
			r, err := c.Logs(cmd.Context(), args[0], follow, lines)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(f.Streams.Out, r)
			if cmd.Context().Err() != nil {
				return cli.ErrInterrupted
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringVarP(&tail, "tail", "n", "all", "only this many last lines")
	return cmd
}
