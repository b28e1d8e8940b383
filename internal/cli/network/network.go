// Package network is the commands about networks.
package network

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

// NewGroup makes "lodge network".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("network", "Manage the host's own networks", "  lodge network ls\n  lodge network create lab --ipv4 10.9.0.0/24", "networks", "net")
	cmd.AddCommand(newLs(f), newShow(f), newCreate(f), newRm(f))
	return cmd
}

func newLs(f *cli.Factory) *cobra.Command {
	header := []string{"NAME", "DRIVER", "STATE", "IPV4", "IPV6", "NAT", "DOMAIN", "DEVICE", "GUESTS"}
	return cli.ListCommand(f, "List networks", "  lodge network ls", header, (*client.Client).Networks, func(n api.Network) []string {
		nat := "no"
		if n.NAT {
			nat = "yes"
		}
		return []string{n.Name, n.Driver, cli.State(n.Ready, "preparing", n.Problem), n.IPv4, n.IPv6, nat, n.Domain, n.Device, fmt.Sprint(n.Guests)}
	})
}

func newShow(f *cli.Factory) *cobra.Command {
	return cli.ShowCommand(f, "show NETWORK", "Show all about a network",
		"  lodge network show default", cli.NetworkNames, (*client.Client).Network)
}

func newCreate(f *cli.Factory) *cobra.Command {
	var (
		ask  api.NetworkCreate
		nat  bool
		wait cli.Waiting
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a network",
		Example: "  lodge network create lab --ipv4 10.9.0.0/24\n  lodge network create closed --nat=false --ipv6 none",
		Args:    cli.Named("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ask.Name = args[0]
			if cmd.Flags().Changed("nat") {
				ask.NAT = &nat
			}
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.CreateNetwork(ctx, ask, w)
			})
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&ask.Driver, "driver", "", "what it is made with (default bridge)")
	fl.StringVar(&ask.IPv4, "ipv4", "", "prefix, or none (default: a free private one)")
	fl.StringVar(&ask.IPv6, "ipv6", "", "prefix, or none (default: a random ULA)")
	fl.BoolVar(&nat, "nat", true, "lead its guests out with the host's address")
	fl.StringVar(&ask.Domain, "domain", "", "domain of its guests' names (default lodge.internal)")
	wait.Flags(cmd)
	return cmd
}

func newRm(f *cli.Factory) *cobra.Command {
	return cli.RemoveCommand(f, "rm NETWORK…", "Remove networks that no guest is on", "  lodge network rm lab",
		cli.NetworkNames, (*client.Client).DeleteNetwork)
}
