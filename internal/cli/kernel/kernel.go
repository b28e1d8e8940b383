// Package kernel is the commands about kernels.
package kernel

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

// NewGroup makes "lodge kernel".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("kernel", "Build and manage what guests of model vm and paravirt boot", "  lodge kernel build debian/12\n  lodge kernel ls", "kernels")
	cmd.AddCommand(newBuild(f), newLs(f), newShow(f), newRm(f))
	return cmd
}

// buildable is what lodged can make, with a word about each.
var buildable = []string{
	"linux/debian-12\tDebian 12's for virtual machines",
	"linux/debian-13\tDebian 13's for virtual machines",
	"um/debian-sid\tthe newest that Debian packages for paravirtual guests",
	"um/debian-13\tDebian 13's for paravirtual guests",
	"um/debian-12\tDebian 12's for paravirtual guests",
	"um/lodge\tLodge's own for paravirtual guests, compiled here",
}

// fullName takes the short forms that people write: debian/12 is the kernel
// that machines of that release boot, uml the one that is compiled here.
func fullName(name string) string {
	if name == "uml" {
		return "um/lodge"
	}
	if release, ok := strings.CutPrefix(name, "debian/"); ok {
		return "linux/debian-" + release
	}
	return name
}

func newBuild(f *cli.Factory) *cobra.Command {
	var (
		ask  api.KernelBuild
		wait cli.Waiting
	)
	var names []string
	for _, b := range buildable {
		name, what, _ := strings.Cut(b, "\t")
		names = append(names, fmt.Sprintf("  %-16s %s", name, what))
	}
	cmd := &cobra.Command{
		Use: "build NAME", Short: "Make a kernel from a distribution's packages or from source",
		Long: `Make a kernel that guests of model vm (linux/…) or paravirt (um/…) boot. Nothing
is installed on the host. One that is there is left as it is.

` + strings.Join(names, "\n") + `

debian/12 is short for linux/debian-12, uml for um/lodge, which takes 10 to 30
minutes, and 3 GiB of disk while it is made. lodge launch builds what it needs.`,
		Example:   "  lodge kernel build debian/12\n  lodge kernel build uml\n  lodge kernel build um/debian-sid --refresh",
		Args:      cli.Named("NAME"),
		ValidArgs: buildable,
		RunE: func(cmd *cobra.Command, args []string) error {
			ask.Name = fullName(args[0])
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.BuildKernel(ctx, ask, w)
			})
			return err
		},
	}
	cmd.Flags().BoolVar(&ask.Refresh, "refresh", false, "build the newest even if one is there")
	wait.Flags(cmd)
	return cmd
}

func newLs(f *cli.Factory) *cobra.Command {
	header := []string{"NAME", "STATE", "VERSION", "FROM", "SIZE", "GUESTS", "BUILT"}
	return cli.ListCommand(f, "List kernels", "  lodge kernel ls\n  lodge kernel ls -o json", header, (*client.Client).Kernels, func(k api.Kernel) []string {
		return []string{k.Name, cli.State(k.Ready, "building", k.Problem), k.Version, k.From, units.Bytes(k.SizeBytes), fmt.Sprint(len(k.UsedBy)), cli.Since(k.Built)}
	})
}

func newShow(f *cli.Factory) *cobra.Command {
	return cli.ShowCommand(f, "show KERNEL", "Show all about a kernel",
		"  lodge kernel show um/debian-sid\n  lodge kernel show linux/debian-12 -o json", cli.KernelNames,
		func(c *client.Client, ctx context.Context, name string) (api.Kernel, error) {
			return c.Kernel(ctx, fullName(name))
		})
}

func newRm(f *cli.Factory) *cobra.Command {
	return cli.RemoveCommand(f, "rm KERNEL…", "Remove kernels that no guest boots", "  lodge kernel rm um/debian-12", cli.KernelNames,
		func(c *client.Client, ctx context.Context, name string, w time.Duration) (api.Operation, error) {
			return c.DeleteKernel(ctx, fullName(name), w)
		})
}
