package guest

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

func newClone(f *cli.Factory) *cobra.Command {
	var (
		ask  api.GuestClone
		wait cli.Waiting
	)
	cmd := &cobra.Command{
		Use: "clone GUEST NEW-NAME", Short: "Make guests that are like another",
		Long: "Make a guest of another's files, with a name, addresses and a machine-id of its own. It shares what is not\n" +
			"written anew with the other, where the pool can. Ports of the host keep leading to the other.\n" +
			"With --running it goes on from where the other is, instead of booting (model vm). Many made by one\n" +
			"command are copies of one moment, and share the memory that none of them changes.",
		Example: "  lodge clone web1 web2 --start\n  lodge clone web1 test --snapshot before-upgrade\n  lodge clone vm1 vm2 --running\n" +
			"  lodge clone vm1 trial --running --count 10",
		Args:              cli.Named("GUEST", "NEW-NAME"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ask.Name = args[1]; cmd.Flags().Changed("count") && ask.Count < 1 {
				return cli.Usagef(cmd, "--count must be at least 1")
			}
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.CloneGuest(ctx, args[0], ask, w)
			})
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&ask.Snapshot, "snapshot", "", "make it of this snapshot, not of what the guest is now")
	fl.BoolVar(&ask.Running, "running", false, "let it go on from where the other is")
	fl.BoolVar(&ask.Start, "start", false, "boot it")
	fl.IntVar(&ask.Count, "count", 0, "make this many, called NEW-NAME-1, NEW-NAME-2, …")
	wait.Flags(cmd)
	return cmd
}

func newSave(f *cli.Factory) *cobra.Command {
	o := &powerOptions{Factory: f}
	o.ask = func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
		return c.SaveGuest(ctx, name, wait)
	}
	cmd := o.command("save", "Keep the memory of guests and switch them off", "  lodge save vm1\n  lodge start vm1")
	cmd.Long = "Write what guests are doing to their pool and switch them off. The next start goes on from there; a stop forgets it."
	return cmd
}
