// Package pool is the commands about pools.
package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

// NewGroup makes "lodge pool".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("pool", "Manage places for guests' writable layers", "  lodge pool ls\n  lodge pool create fast --driver btrfs --source /dev/nvme0n1p3", "pools")
	cmd.AddCommand(newLs(f), newShow(f), newCreate(f), newRm(f))
	return cmd
}

func newLs(f *cli.Factory) *cobra.Command {
	header := []string{"NAME", "DRIVER", "STATE", "QUOTA", "TOTAL", "USED", "FREE", "GUESTS", "SOURCE"}
	return cli.ListCommand(f, "List pools", "  lodge pool ls", header, (*client.Client).Pools, func(p api.Pool) []string {
		return []string{p.Name, p.Driver, cli.State(p.Ready, "preparing", p.Problem), p.Quota, units.Bytes(p.TotalBytes), units.Bytes(p.UsedBytes), units.Bytes(p.FreeBytes), fmt.Sprint(len(p.UsedBy)), p.Source}
	})
}

func newShow(f *cli.Factory) *cobra.Command {
	return cli.ShowCommand(f, "show POOL", "Show all about a pool",
		"  lodge pool show default", cli.PoolNames, (*client.Client).Pool)
}

func newCreate(f *cli.Factory) *cobra.Command {
	var (
		ask    api.PoolCreate
		size   cli.SizeFlag
		wait   cli.Waiting
		driver = cli.OneOf{Value: "btrfs", Words: []string{"btrfs", "dir"}}
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a pool",
		Long: `Make a pool. btrfs enforces quotas; dir lies on any file system and only counts.
Without a source Lodge makes its own, for btrfs in a file.`,
		Example: "  lodge pool create fast --driver btrfs --source /dev/nvme0n1p3\n  lodge pool create spare --driver dir --source /srv/spare",
		Args:    cli.Named("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ask.Name, ask.Driver = args[0], driver.Value
			if size.Value != nil {
				ask.SizeBytes = *size.Value
			}
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.CreatePool(ctx, ask, w)
			})
			return err
		},
	}
	driver.Var(cmd, "driver", "", "how it is stored")
	cmd.Flags().StringVar(&ask.Source, "source", "", "directory or block device")
	cmd.Flags().Var(&size, "size", "of the file, if Lodge makes one")
	wait.Flags(cmd)
	return cmd
}

func newRm(f *cli.Factory) *cobra.Command {
	return cli.RemoveCommand(f, "rm POOL…", "Remove pools that hold nothing", "  lodge pool rm spare", cli.PoolNames, (*client.Client).DeletePool)
}
