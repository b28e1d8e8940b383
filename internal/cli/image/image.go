// Package image is the commands about images.
package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

// NewGroup makes "lodge image".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("image", "Build and manage what guests are made from", "  lodge image build debian/12\n  lodge image ls", "images")
	cmd.AddCommand(newBuild(f), newLs(f), newShow(f), newRm(f), newImport(f), newExport(f))
	return cmd
}

func newBuild(f *cli.Factory) *cobra.Command {
	var (
		ask     api.ImageBuild
		variant cli.OneOf
		wait    cli.Waiting
	)
	buildable := []string{"debian/12", "debian/13", "debian/sid", "busybox", "empty"}
	cmd := &cobra.Command{
		Use: "build NAME", Short: "Build an image from a distribution's packages",
		Long: "Build an image from a distribution's packages: " + strings.Join(buildable, ", ") + ".\n" +
			"One that is there is left as it is. \"empty\" is a disk with nothing on it, for guests of\n" +
			"model vm that a system is installed on.",
		Example:   "  lodge image build debian/12\n  lodge image build debian/13 --variant minimal",
		Args:      cli.Named("NAME"),
		ValidArgs: buildable,
		RunE: func(cmd *cobra.Command, args []string) error {
			ask.Name, ask.Variant = args[0], variant.Value
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.BuildImage(ctx, ask, w)
			})
			return err
		},
	}
	variant.Words = []string{"minimal", "standard"}
	variant.Var(cmd, "variant", "", "how much is in it (default standard)")
	cmd.Flags().StringVar(&ask.As, "as", "", "name of the image (default: NAME, and -minimal for that variant)")
	cmd.Flags().BoolVar(&ask.Rebuild, "rebuild", false, "build again even if it is there")
	wait.Flags(cmd)
	return cmd
}

func newLs(f *cli.Factory) *cobra.Command {
	header := []string{"NAME", "STATE", "KIND", "OS", "RELEASE", "ARCH", "SIZE", "GUESTS", "BUILT"}
	return cli.ListCommand(f, "List images", "  lodge image ls\n  lodge image ls -o json", header, (*client.Client).Images, func(i api.Image) []string {
		return []string{i.Name, cli.State(i.Ready, "building", i.Problem), kind(i), i.OS, i.Release, i.Architecture, units.Bytes(i.SizeBytes), fmt.Sprint(len(i.UsedBy)), cli.Since(i.Built)}
	})
}

// kind says what an image is: a tree, or a disk and how large it is in a guest.
func kind(i api.Image) string {
	switch i.Disk {
	case "":
		return "tree"
	case "iso":
		return "disc " + units.Bytes(i.DiskBytes)
	}
	return "disk " + units.Bytes(i.DiskBytes)
}

func newShow(f *cli.Factory) *cobra.Command {
	return cli.ShowCommand(f, "show IMAGE", "Show all about an image",
		"  lodge image show debian/12\n  lodge image show debian/12 -o json", cli.ImageNames, (*client.Client).Image)
}

func newRm(f *cli.Factory) *cobra.Command {
	return cli.RemoveCommand(f, "rm IMAGE…", "Remove images that no guest is made from", "  lodge image rm debian/12", cli.ImageNames, (*client.Client).DeleteImage)
}

func newImport(f *cli.Factory) *cobra.Command {
	var (
		wait  cli.Waiting
		limit cli.SizeFlag
		about client.ImageImport
	)
	cmd := &cobra.Command{
		Use: "import FILE NAME", Short: "Make an image of a root file system in a tar, or of a disk",
		Long: `Make an image of a root file system in a tar, or of a disk (qcow2, VMDK, VHD, VHDX, VDI, ISO, or raw with a boot sector),
plain or compressed (gz, xz, zst). What a file is, is told by its content. "-" reads the standard input.
Guests of a disk or an ISO are of model vm; one of an ISO has the disc in its drive and an empty disk to install on.
What machines a disk is for shows by its boot loaders; where it has none that are known, --arch says it.`,
		Example: "  lodge image import win2019.vhdx win/2019\n  lodge image import rootfs.tar.zst alpine/3\n  docker export web | lodge image import - web",
		Args:    cli.Named("FILE", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := f.Streams.In
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer file.Close()
				in = file
			}
			if limit.Value != nil {
				about.MaxSize = *limit.Value
			}
			_, err := f.Do(cmd.Context(), &wait, func(ctx context.Context, c *client.Client, w time.Duration) (api.Operation, error) {
				return c.ImportImage(ctx, args[1], io.NopCloser(in), about, w)
			})
			return err
		},
	}
	cmd.Flags().Var(&limit, "max-size", "refuse what is larger unpacked")
	cmd.Flags().StringVar(&about.Architecture, "arch", "", "that a disk is for: amd64, arm64, … (default: what it shows)")
	wait.Flags(cmd)
	return cmd
}

func newExport(f *cli.Factory) *cobra.Command {
	format := cli.OneOf{Value: "tar", Words: []string{"tar", "erofs", "disk"}}
	cmd := &cobra.Command{
		Use: "export IMAGE FILE", Short: "Write an image to a file",
		Long:              `Write an image to a file, or to the standard output as "-". The file appears when it is whole.`,
		Example:           "  lodge image export debian/12 debian.tar\n  lodge image export busybox --format erofs busybox.erofs",
		Args:              cli.Named("IMAGE", "FILE"),
		ValidArgsFunction: f.Complete(1, cli.ImageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] == "-" && f.Streams.OutTTY {
				return cli.Usagef(cmd, "an image is not for a terminal")
			}
			c, err := f.Client()
			if err != nil {
				return err
			}
			r, err := c.ExportImage(cmd.Context(), args[0], format.Value)
			if err != nil {
				return err
			}
			defer r.Close()
			if args[1] == "-" {
				_, err = io.Copy(f.Streams.Out, r)
				return err
			}
			return writeWhole(args[1], r)
		},
	}
	format.Var(cmd, "format", "", "what to write")
	return cmd
}

// writeWhole writes beside the file and puts it in place when all is there.
func writeWhole(name string, r io.Reader) (err error) {
	part := name + ".part"
	file, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			file.Close()
			os.Remove(part)
		}
	}()
	if _, err = io.Copy(file, r); err != nil {
		return err
	}
	if err = file.Sync(); err != nil {
		return err
	}
	if err = file.Close(); err != nil {
		return err
	}
	return os.Rename(part, name)
}
