package guest

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

// plug is a command that attaches or detaches one thing.
func plug(f *cli.Factory, use, short, example string, names []string, complete cobra.CompletionFunc, ask func(ctx context.Context, c *client.Client, args []string, wait time.Duration) (api.Operation, error)) *cobra.Command {
	var wait cli.Waiting
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example,
		Args: cli.Named(names...), ValidArgsFunction: complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error) {
				return ask(ctx, c, args, wait)
			}); err != nil || wait.No() {
				return err
			}
			return tellPending(cmd.Context(), f, args[0])
		},
	}
	wait.Flags(cmd)
	return cmd
}

// tellPending says what a running guest gets with its next start only.
func tellPending(ctx context.Context, f *cli.Factory, name string) error {
	c, err := f.Client()
	if err != nil {
		return err
	}
	g, err := c.Guest(ctx, name)
	if err != nil {
		return err
	}
	for _, what := range g.Pending {
		f.Streams.Warnf("%s with the next start of %s: lodge restart %s", what, name, name)
	}
	return nil
}

func newAttach(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("attach", "Give guests disks, discs and network cards", "  lodge attach disk db1 data=20GiB\n  lodge attach nic web1 lab")
	disk := plug(f, "disk GUEST NAME=SIZE", "Give a guest one more disk, on its own pool", "  lodge attach disk db1 data=20GiB", []string{"GUEST", "NAME=SIZE"}, completeGuest(f),
		func(ctx context.Context, c *client.Client, args []string, wait time.Duration) (api.Operation, error) {
			var d diskFlag
			if err := d.Set(args[1]); err != nil {
				return api.Operation{}, &cli.UsageError{Err: err, Command: "lodge attach disk"}
			}
			if len(d.further) == 0 {
				return api.Operation{}, &cli.UsageError{Err: errNoName, Command: "lodge attach disk"}
			}
			return c.AttachDisk(ctx, args[0], d.further[0], wait)
		})
	disk.Long = "Give a guest of model vm or paravirt one more disk. It is empty, and the guest finds\nit by its name as serial number (/dev/disk/by-id/virtio-data). A guest that runs gets\nit at once if its engine can do that, else with its next start."
	iso := plug(f, "iso GUEST [NAME=]FILE", "Put a disc into a guest: an ISO file of the host", "  lodge attach iso win1 /srv/iso/drivers.iso\n  lodge attach iso win1 tools=/srv/iso/tools.iso", []string{"GUEST", "FILE"}, completeGuest(f),
		func(ctx context.Context, c *client.Client, args []string, wait time.Duration) (api.Operation, error) {
			all, err := discs(args[1:])
			if err != nil {
				return api.Operation{}, err
			}
			return c.AttachDisk(ctx, args[0], all[0], wait)
		})
	nic := plug(f, "nic GUEST NETWORK", "Put a guest on one more network", "  lodge attach nic web1 lab", []string{"GUEST", "NETWORK"}, secondOf(f, cli.NetworkNames),
		func(ctx context.Context, c *client.Client, args []string, wait time.Duration) (api.Operation, error) {
			return c.AttachNIC(ctx, args[0], args[1], wait)
		})
	cmd.AddCommand(disk, iso, nic)
	return cmd
}

func newDetach(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("detach", "Take disks, discs and network cards away from guests", "  lodge detach iso win1 cdrom\n  lodge detach nic web1 eth1")
	var sure bool
	remove := func(ctx context.Context, c *client.Client, args []string, wait time.Duration) (api.Operation, error) {
		return c.DetachDisk(ctx, args[0], args[1], wait)
	}
	disk := plug(f, "disk GUEST NAME", "Take a disk away, with all that is on it", "  lodge detach disk db1 data --delete-data", []string{"GUEST", "NAME"}, secondOfGuest(f, diskNames), remove)
	disk.Flags().BoolVar(&sure, "delete-data", false, "yes, with all that is on it")
	run := disk.RunE
	disk.RunE = func(cmd *cobra.Command, args []string) error {
		if !sure {
			return cli.Usagef(cmd, "what is on disk %s would be lost; say --delete-data if it may be", args[1])
		}
		return run(cmd, args)
	}
	iso := plug(f, "iso GUEST NAME", "Take a disc out; its file stays", "  lodge detach iso win1 cdrom", []string{"GUEST", "NAME"}, secondOfGuest(f, discNames),
		func(ctx context.Context, c *client.Client, args []string, wait time.Duration) (api.Operation, error) {
			g, err := c.Guest(ctx, args[0])
			if err != nil {
				return api.Operation{}, err
			}
			for _, d := range g.Disks {
				if d.Name == args[1] && d.ISO == "" {
					return api.Operation{}, &api.Error{Kind: api.KindConflict, Ref: "guest/" + args[0], Detail: d.Name + " is a disk, no disc", Hint: "lodge detach disk " + args[0] + " " + d.Name + " --delete-data"}
				}
			}
			return remove(ctx, c, args, wait)
		})
	nic := plug(f, "nic GUEST CARD", "Take a network card away; its addresses are free for others", "  lodge detach nic web1 eth1", []string{"GUEST", "CARD"}, secondOfGuest(f, cardNames),
		func(ctx context.Context, c *client.Client, args []string, wait time.Duration) (api.Operation, error) {
			return c.DetachNIC(ctx, args[0], args[1], wait)
		})
	cmd.AddCommand(disk, iso, nic)
	return cmd
}

// secondOf completes a guest, and then what list returns.
func secondOf(f *cli.Factory, list func(context.Context, *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return completeGuest(f)(cmd, args, word)
		}
		return f.Complete(2, list)(cmd, args, word)
	}
}

// secondOfGuest completes a guest, and then what pick takes of that guest.
func secondOfGuest(f *cli.Factory, pick func(api.Guest) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		return secondOf(f, func(ctx context.Context, c *client.Client) ([]string, error) {
			g, err := c.Guest(ctx, args[0])
			return pick(g), err
		})(cmd, args, word)
	}
}

func diskNames(g api.Guest) (names []string) {
	for _, d := range g.Disks {
		if d.ISO == "" {
			names = append(names, d.Name)
		}
	}
	return names
}

func discNames(g api.Guest) (names []string) {
	for _, d := range g.Disks {
		if d.ISO != "" {
			names = append(names, d.Name)
		}
	}
	return names
}

func cardNames(g api.Guest) (names []string) {
	for _, n := range g.NICs {
		names = append(names, n.Name)
	}
	return names
}
