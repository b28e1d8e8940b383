package guest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

type setOptions struct {
	*cli.Factory
	specFlags
	wait  cli.Waiting
	patch api.GuestPatch
}

func newSet(f *cli.Factory) *cobra.Command {
	o := &setOptions{Factory: f}
	cmd := &cobra.Command{
		Use: "set GUEST…", Short: "Change guests",
		Long: `Change what is given and leave the rest. Processors, weight, memory, swap, disk,
processes and IO change at once in a running guest; the rest with its next start.
--env, --label and --publish replace all of theirs; given once and empty
(--publish "") they take all away. --disk NAME=SIZE makes a further disk larger; use
lodge attach and lodge detach for new ones and to take them away.`,
		Example: `  lodge set web1 --memory 1GiB --cpus 2
  lodge set web1 --publish 8080:80 --publish 8443:443
  lodge set db1 --io-write 20MiB --io-write-ops 500
  lodge set db1 --autostart --autostart-order 1
  lodge set win1 --machine q35 --firmware uefi --tpm
  lodge set db1 --disk data=40GiB`,
		ValidArgsFunction: completeGuests(f),
		Args:              cli.Some("GUEST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 {
				return cli.Usagef(cmd, "nothing to change was given")
			}
			if err := o.read(cmd); err != nil {
				return err
			}
			return o.Each(cmd.Context(), &o.wait, args, func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error) {
				p, err := o.patchOf(ctx, c, name)
				if err != nil {
					return api.Operation{}, err
				}
				return c.PatchGuest(ctx, name, p, wait)
			})
		},
	}
	o.limits(cmd)
	o.machine.flags(cmd, f)
	o.autostartFlags(cmd)
	fl := cmd.Flags()
	fl.StringSliceVarP(&o.publish, "publish", "p", nil, "port forwards [ADDRESS:]HOSTPORT:GUESTPORT[/udp]")
	fl.StringArrayVarP(&o.env, "env", "e", nil, "environment variable KEY=VALUE, or KEY to pass ours on")
	fl.StringSliceVarP(&o.labels, "label", "l", nil, "label KEY=VALUE")
	fl.StringVar(&o.userData, "cloud-init", "", "file of cloud-init user-data")
	o.restart.Words = []string{"never", "on-failure", "always"}
	o.restart.Var(cmd, "restart", "", "what to do when it ends by itself")
	fl.Var(&o.timeout, "stop-timeout", "how long a clean stop may take")
	o.wait.Flags(cmd)
	return cmd
}

// read makes the patch of the flags that were given.
func (o *setOptions) read(cmd *cobra.Command) error {
	o.patch = api.GuestPatch{
		CPUs: given(cmd, "cpus", o.cpus), CPUWeight: given(cmd, "cpu-weight", o.weight),
		MemoryBytes: o.memory.Value, SwapBytes: o.swap.Value, DiskBytes: o.disk.own.Value,
		Processes: given(cmd, "processes", o.processes), StopTimeout: o.timeout.Value,
		Restart: given(cmd, "restart", o.restart.Value), Autostart: o.autostartSpec(cmd),
		Publish: given(cmd, "publish", filled(o.publish)), IO: o.io.limits(cmd),
		Engine: given(cmd, "engine", o.machine.engine), Machine: given(cmd, "machine", o.machine.machine),
		Firmware: given(cmd, "firmware", o.machine.firmware), TPM: given(cmd, "tpm", o.machine.tpm),
		Kernel: given(cmd, "kernel", o.machine.kernel), CPUModel: given(cmd, "cpu-model", o.machine.cpuModel),
	}
	env, err := pairs(cmd, "env", filled(o.env), os.LookupEnv)
	if err != nil {
		return err
	}
	labels, err := pairs(cmd, "label", filled(o.labels), nil)
	if err != nil {
		return err
	}
	o.patch.Env, o.patch.Labels = given(cmd, "env", full(env)), given(cmd, "label", full(labels))
	if o.userData != "" {
		b, err := os.ReadFile(o.userData)
		if err != nil {
			return fmt.Errorf("--cloud-init: %w", err)
		}
		o.patch.UserData = given(cmd, "cloud-init", string(b))
	} else {
		o.patch.UserData = given(cmd, "cloud-init", "")
	}
	return nil
}

// patchOf is the patch for one guest: the disks that become larger are among
// others of its own.
func (o *setOptions) patchOf(ctx context.Context, c *client.Client, name string) (api.GuestPatch, error) {
	p := o.patch
	if len(o.disk.further) == 0 {
		return p, nil
	}
	g, err := c.Guest(ctx, name)
	if err != nil {
		return p, err
	}
	all := slices.Clone(g.Disks)
	for _, d := range o.disk.further {
		i := slices.IndexFunc(all, func(h api.Disk) bool { return h.Name == d.Name })
		if i < 0 {
			return p, &api.Error{Kind: api.KindNotFound, Ref: "guest/" + name, Detail: "has no disk " + d.Name, Hint: fmt.Sprintf("lodge attach disk %s %s=%s", name, d.Name, units.Bytes(d.SizeBytes))}
		}
		all[i].SizeBytes = d.SizeBytes
	}
	p.Disks = &all
	return p, nil
}

// filled leaves out empty values, so that one alone empties a list.
func filled(list []string) []string {
	left := []string{}
	for _, s := range list {
		if s != "" {
			left = append(left, s)
		}
	}
	return left
}

// full makes an empty map of none: an empty one takes all away, none is no
// change.
func full(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
