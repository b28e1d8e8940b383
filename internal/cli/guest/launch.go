package guest

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

type launchOptions struct {
	*cli.Factory
	specFlags
	wait   cli.Waiting
	output cli.Output
	pull   cli.OneOf
	ask    api.GuestCreate
}

func newLaunch(f *cli.Factory) *cobra.Command {
	o := &launchOptions{Factory: f}
	cmd := o.command("launch IMAGE NAME [-- COMMAND…]", "Make a guest and start it")
	cmd.Long = `Make a guest of an image and start it.

What is left out gets its default: model os, 1 processor, 512MiB of memory, a
10GiB disk, the network and the pool called default. An image that is missing but
can be built (debian/…, busybox) is built first, and so is the kernel of guests
of model vm and paravirt. A command after -- runs as the guest's first process
instead of the image's init.

The model is os (the host's kernel), paravirt (a kernel of its own, as a program of
the host) or vm (a whole machine). --disk SIZE is the guest's own disk, --disk
NAME=SIZE one more for guests of the other two models.`
	cmd.Example = `  lodge launch debian/12 web1
  lodge launch debian/12 web1 --cpus 2 --memory 1GiB --publish 8080:80
  lodge launch busybox job --ephemeral -- /bin/sh -c 'echo hello'
  lodge launch busybox g --count 100
  lodge launch debian/12 vm1 --model vm --memory 1GiB --disk data=20GiB
  lodge launch busybox u1 --model paravirt`
	o.ask.Start = true
	return cmd
}

func newCreate(f *cli.Factory) *cobra.Command {
	o := &launchOptions{Factory: f}
	cmd := o.command("create IMAGE NAME [-- COMMAND…]", "Make a guest and leave it off")
	cmd.Long = "Make a guest of an image without starting it. All is as with lodge launch."
	cmd.Example = `  lodge create debian/12 db1 --memory 2GiB --disk 50GiB
  lodge start db1`
	return cmd
}

func (o *launchOptions) command(use, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		ValidArgsFunction: o.Complete(1, cli.ImageNames),
		Args:              launchArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := o.spec(cmd)
			if err != nil {
				return err
			}
			spec.Image, spec.Name, spec.Command = args[0], args[1], args[2:]
			o.ask.GuestSpec, o.ask.Count = spec, o.count
			return o.run(cmd.Context())
		},
	}
	o.flags(cmd, o.Factory)
	o.wait.Flags(cmd)
	o.output.Flags(cmd)
	o.pull = pullFlag()
	o.pull.Var(cmd, "pull", "", "build an image that is missing, or never")
	return cmd
}

func pullFlag() cli.OneOf { return cli.OneOf{Value: "missing", Words: []string{"missing", "never"}} }

// launchArgs wants an image, a name, and a command only after "--".
func launchArgs(cmd *cobra.Command, args []string) error {
	before := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		before = args[:dash]
	}
	if len(before) > 2 {
		return cli.Usagef(cmd, "%q is one argument too many; a command is written after --", before[2])
	}
	return cli.Named("IMAGE", "NAME")(cmd, before)
}

func (o *launchOptions) run(ctx context.Context) error {
	if _, err := launch(ctx, o.Factory, &o.wait, o.ask, o.pull.Value != "never"); err != nil || o.wait.No() {
		return err
	}
	c, err := o.Client()
	if err != nil {
		return err
	}
	if o.ask.Count > 0 || o.ask.Ephemeral {
		o.Streams.Notef("%s", summary(o.ask))
		return nil
	}
	if o.output.Table() && !o.Streams.ErrTTY {
		return nil
	}
	g, err := c.Guest(ctx, o.ask.Name)
	if err != nil {
		return err
	}
	if o.output.Table() {
		o.Streams.Notef("%s %s", summary(o.ask), strings.Join(g.Addresses, " "))
		return nil
	}
	return o.Print(&o.output, g, nil)
}

func summary(g api.GuestCreate) string {
	state := "is made"
	if g.Start {
		state = "runs"
	}
	if g.Count > 0 {
		state = strings.Replace(state, "is", "are", 1)
		return g.Name + "-1 and on: " + state
	}
	return g.Name + " " + state
}

// launch makes the guests, building first what is missing.
func launch(ctx context.Context, f *cli.Factory, w *cli.Waiting, ask api.GuestCreate, build bool) (api.Operation, error) {
	create := func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error) {
		return c.CreateGuest(ctx, ask, wait)
	}
	if !build {
		return f.Do(ctx, w, create)
	}
	return building(ctx, f, w, ask.Image, create)
}

// verb is a request that is answered with a receipt.
type verb = func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error)

// building does what do asks for, and builds first what is missing for it and
// can be built: the image, and the kernel of guests that have their own.
func building(ctx context.Context, f *cli.Factory, w *cli.Waiting, image string, do verb) (api.Operation, error) {
	op, err := f.Do(ctx, w, do)
	for range 2 {
		if err == nil {
			return op, nil
		}
		making := missing(ctx, f, image, err)
		if making == nil {
			return op, err
		}
		if _, err := f.Do(ctx, &cli.Waiting{}, making); err != nil {
			return op, err
		}
		op, err = f.Do(ctx, w, do)
	}
	return op, err
}

// missing says what makes the thing whose lack is the reason of err, and nil if
// it is another.
func missing(ctx context.Context, f *cli.Factory, image string, err error) verb {
	if kernel := kernelMissing(err); kernel != "" {
		f.Streams.Notef("the kernel %s is missing and is built first", kernel)
		return func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error) {
			return c.BuildKernel(ctx, api.KernelBuild{Name: kernel}, wait)
		}
	}
	if !buildable(image) || !imageMissing(ctx, f, image, err) {
		return nil
	}
	f.Streams.Notef("the image %s is missing and is built first", image)
	return func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error) {
		return c.BuildImage(ctx, buildOf(image), wait)
	}
}

// kernelMissing is the kernel whose lack a request failed by: there is none, or
// not yet.
func kernelMissing(err error) string {
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Kind != api.KindNotFound && e.Kind != api.KindBusy {
		return ""
	}
	name, ok := strings.CutPrefix(e.Ref, "kernel/")
	if !ok {
		return ""
	}
	return name
}

// buildable reports whether lodged knows how to make the image.
func buildable(image string) bool {
	return image == "busybox" || image == "empty" || strings.HasPrefix(image, "debian/")
}

// buildOf is the request that makes the image called so.
func buildOf(image string) api.ImageBuild {
	if name, ok := strings.CutSuffix(image, "-minimal"); ok {
		return api.ImageBuild{Name: name, Variant: "minimal"}
	}
	return api.ImageBuild{Name: image}
}

// imageMissing reports whether a request failed because there is no such image,
// or not yet: asking for one that is being built waits for that build.
func imageMissing(ctx context.Context, f *cli.Factory, image string, err error) bool {
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Field != "image" && !strings.HasPrefix(e.Ref, "image/") {
		return false
	}
	if e.Kind == api.KindBusy {
		return true
	}
	c, err := f.Client()
	if err != nil || e.Kind != api.KindNotFound {
		return false
	}
	_, err = c.Image(ctx, image)
	return isKind(err, api.KindNotFound)
}
