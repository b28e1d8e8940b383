package guest

import (
	"github.com/spf13/cobra"

	"lodge/internal/cli"
)

func newConsole(f *cli.Factory) *cobra.Command {
	return &cobra.Command{
		Use: "console GUEST", Short: "Attach to a guest's console",
		Long:              "Attach to a guest's console. The key ^] detaches; the guest runs on.",
		Example:           "  lodge console web1",
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			s, err := c.Console(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			f.Streams.Notef("the console of %s; ^] detaches", args[0])
			_, err = attach(cmd.Context(), f, s, attachment{input: true, tty: true, detach: true, sized: true})
			if err == nil && f.Streams.InTTY {
				f.Streams.Notef("\nleft the console of %s", args[0])
			}
			return err
		},
	}
}
