// Package forward is the commands about port forwards.
package forward

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

// NewGroup makes "lodge forward".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("forward", "Lead ports of the host to guests", "  lodge forward add web1 8080:80\n  lodge forward ls", "forwards")
	cmd.AddCommand(newLs(f), newShow(f), newAdd(f), newRm(f))
	return cmd
}

func newLs(f *cli.Factory) *cobra.Command {
	header := []string{"NAME", "LISTEN", "GUEST", "TARGET", "STATE"}
	return cli.ListCommand(f, "List port forwards", "  lodge forward ls", header, (*client.Client).Forwards, func(w api.Forward) []string {
		listen := w.Listen
		if listen == "" {
			listen = "*"
		}
		return []string{w.Name, net.JoinHostPort(listen, strconv.Itoa(w.Port)) + "/" + w.Protocol, w.Guest, fmt.Sprint(w.Target), cli.State(w.Active, "inactive", w.Problem)}
	})
}

func newShow(f *cli.Factory) *cobra.Command {
	return cli.ShowCommand(f, "show FORWARD", "Show all about a port forward",
		"  lodge forward show tcp-8080", cli.ForwardNames, (*client.Client).Forward)
}

func newAdd(f *cli.Factory) *cobra.Command {
	var wait cli.Waiting
	cmd := &cobra.Command{
		Use: "add GUEST [ADDRESS:]HOSTPORT:GUESTPORT[/udp]", Short: "Lead a port of the host to a guest",
		Example:           "  lodge forward add web1 8080:80\n  lodge forward add dns1 127.0.0.1:5353:53/udp",
		Args:              cli.Named("GUEST", "HOSTPORT:GUESTPORT"),
		ValidArgsFunction: f.Complete(1, cli.GuestNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.CreateForward(ctx, api.ForwardCreate{Guest: args[0], Publish: args[1]}, w)
			})
			return err
		},
	}
	wait.Flags(cmd)
	return cmd
}

func newRm(f *cli.Factory) *cobra.Command {
	return cli.RemoveCommand(f, "rm FORWARD…", "End port forwards", "  lodge forward rm tcp-8080", cli.ForwardNames, (*client.Client).DeleteForward)
}
