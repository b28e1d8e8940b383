package guest

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

type runOptions struct {
	*cli.Factory
	specFlags
	pull     cli.OneOf
	name     string
	detached bool
	remove   bool
	input    bool
	tty      bool
	ask      api.GuestCreate
}

func newRun(f *cli.Factory) *cobra.Command {
	o := &runOptions{Factory: f}
	cmd := &cobra.Command{
		Use: "run IMAGE [COMMAND…]", Short: "Launch a guest and show what it writes, as docker run does",
		Long: `Launch a guest and follow its console until it ends; end with its exit status.
INT and TERM stop the guest. With -d it stays in the background. Flags go before
the image.`,
		Example: `  lodge run --rm busybox echo hello
  lodge run -d --name web1 -p 8080:80 debian/12
  lodge run --rm -it busybox sh`,
		ValidArgsFunction: f.Complete(1, cli.ImageNames),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usagef(cmd, "IMAGE is missing")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := o.spec(cmd)
			if err != nil {
				return err
			}
			spec.Image, spec.Command, spec.Name = args[0], args[1:], o.name
			if len(spec.Command) > 0 && spec.Command[0] == "--" {
				spec.Command = spec.Command[1:]
			}
			if spec.Name == "" {
				spec.Name = someName(spec.Image)
			}
			if o.count > 0 && !o.detached {
				return cli.Usagef(cmd, "--count needs -d")
			}
			o.ask = api.GuestCreate{GuestSpec: spec, Start: true, Count: o.count}
			return o.run(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	o.flags(cmd, f)
	o.pull = pullFlag()
	o.pull.Var(cmd, "pull", "", "build an image that is missing, or never")
	fl.StringVar(&o.name, "name", "", "name of the guest (default: one is made up)")
	fl.BoolVarP(&o.detached, "detach", "d", false, "leave it in the background and print its name")
	fl.BoolVar(&o.remove, "rm", false, "remove it once it has ended")
	fl.BoolVarP(&o.input, "interactive", "i", false, "give its console our input")
	fl.BoolVarP(&o.tty, "tty", "t", false, "its console is our terminal")
	return cmd
}

// someName makes a name of the image's and a few letters of chance.
func someName(image string) string {
	return strings.ToLower(path.Base(strings.ReplaceAll(image, "/", "")) + "-" + rand.Text()[:6])
}

func (o *runOptions) run(ctx context.Context) error {
	name := o.ask.Name
	if o.detached {
		o.ask.Ephemeral = o.ask.Ephemeral || o.remove
	}
	if _, err := launch(ctx, o.Factory, &cli.Waiting{}, o.ask, o.pull.Value != "never"); err != nil {
		return err
	}
	if o.detached {
		fmt.Fprintln(o.Streams.Out, name)
		return nil
	}
	c, err := o.Client()
	if err != nil {
		return err
	}
	signals, release := o.Signals.Take()
	defer release()
	go func() {
		for force := false; ; force = true {
			select {
			case <-ctx.Done():
				return
			case <-signals:
				// What comes of it is seen by the guest's end.
				c.StopGuest(ctx, name, api.GuestStop{Force: force}, 0)
			}
		}
	}()
	code, err := o.follow(ctx, c, name)
	if o.remove && err == nil {
		_, err = o.Do(ctx, &cli.Waiting{}, func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error) {
			return c.DeleteGuest(ctx, name, true, wait)
		})
	}
	if err == nil && code != 0 {
		return cli.Exit(code)
	}
	return err
}

// logGrace is how long the last lines may take after the guest's end.
const logGrace = 2 * time.Second

// follow shows the guest's console until the guest has ended, and returns its
// exit status.
func (o *runOptions) follow(ctx context.Context, c *client.Client, name string) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop, shown, err := o.show(ctx, c, name)
	if err != nil {
		return 0, err
	}
	// Also when it fails: the terminal must be as it was.
	defer func() { stop(); <-shown }()
	code, err := ended(ctx, c, name)
	if err != nil {
		return 0, err
	}
	select {
	case <-shown:
	case <-time.After(logGrace):
	}
	return code, nil
}

// show carries the guest's console, or what it writes to it, until it ends or
// stop is called; then shown is closed.
func (o *runOptions) show(ctx context.Context, c *client.Client, name string) (stop func(), shown <-chan struct{}, err error) {
	done := make(chan struct{})
	if o.input {
		s, err := c.Console(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		go func() {
			defer close(done)
			attach(ctx, o.Factory, s, attachment{input: true, tty: o.tty, sized: true})
		}()
		return s.Close, done, nil
	}
	r, err := c.Logs(ctx, name, true, -1)
	if err != nil {
		return nil, nil, err
	}
	go func() {
		defer close(done)
		io.Copy(o.Streams.Out, r)
	}()
	return func() { r.Close() }, done, nil
}

// ended waits until the guest is off and returns its exit status; that of one
// that was stopped by request is 0.
func ended(ctx context.Context, c *client.Client, name string) (int, error) {
	_, rev, err := c.Guests(ctx) // first, so that no change is missed
	if err != nil {
		return 0, err
	}
	for {
		g, err := c.Guest(ctx, name)
		if isKind(err, api.KindNotFound) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		if g.Phase == "stopped" && g.Doing == "" || g.Phase == "gone" {
			if g.Exit != nil {
				return g.Exit.Code, nil
			}
			return 0, nil
		}
		if rev, err = nextChange(ctx, c, rev, name); err != nil {
			return 0, err
		}
	}
}

// nextChange returns the revision of the guest's next change after rev.
func nextChange(ctx context.Context, c *client.Client, rev int64, name string) (int64, error) {
	for e, err := range c.Events(ctx, client.EventOptions{Since: rev, Kind: "guest"}) {
		if err != nil {
			return 0, err
		}
		if e.Name == name && e.Type != "progress" {
			return e.Rev, nil
		}
	}
	return 0, context.Cause(ctx)
}
