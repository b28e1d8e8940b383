package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

var errNoName = errors.New("a further disk needs a name: write it as NAME=SIZE")

func newScreenshot(f *cli.Factory) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "screenshot GUEST", Short: "Save what a guest's screen shows as a PNG file",
		Example:           "  lodge screenshot win1\n  lodge screenshot win1 -o - | display",
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				file = args[0] + ".png"
			}
			return screenshot(cmd.Context(), f, args[0], file)
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", `file to write; "-" is the standard output (default: GUEST.png)`)
	return cmd
}

func screenshot(ctx context.Context, f *cli.Factory, guest, file string) error {
	c, err := f.Client()
	if err != nil {
		return err
	}
	r, err := c.Screenshot(ctx, guest)
	if err != nil {
		return err
	}
	defer r.Close()
	picture, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if file == "-" {
		_, err := f.Streams.Out.Write(picture)
		return err
	}
	if err := os.WriteFile(file, picture, 0o644); err != nil {
		return err
	}
	f.Streams.Notef("saved %s", file)
	return nil
}

func newSendKey(f *cli.Factory) *cobra.Command {
	return &cobra.Command{
		Use: "sendkey GUEST KEYS…", Short: "Press keys of a guest with a screen",
		Long: `Press keys of a guest. Each argument is a chord: keys held together, with a hyphen
between them. Keys have QEMU's names: a, 1, ret, spc, tab, esc, f1, up, ctrl, alt,
shift, meta_l, delete.`,
		Example:           "  lodge sendkey win1 ctrl-alt-delete\n  lodge sendkey vm1 r o o t ret",
		ValidArgsFunction: completeGuest(f),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return cli.Usagef(cmd, "%s is missing", []string{"GUEST", "KEYS"}[len(args)])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			var chords [][]string
			for _, a := range args[1:] {
				chords = append(chords, strings.Split(a, "-"))
			}
			return c.SendKeys(cmd.Context(), args[0], chords)
		},
	}
}

func newVNC(f *cli.Factory) *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use: "vnc GUEST", Short: "Show a guest's screen to a VNC viewer",
		Long: `Open a listener here that leads VNC viewers to a guest's screen, through lodged,
until it is interrupted. Whoever can reach the listener can see the screen and type.`,
		Example: `  lodge vnc win1
  lodge vnc win1 --listen 127.0.0.1:5901
  lodge vnc win1 --listen unix:/tmp/win1.vnc`,
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			return vnc(cmd.Context(), f, args[0], listen)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "ADDRESS:PORT (port 0: a free one), or unix:PATH")
	return cmd
}

func vnc(ctx context.Context, f *cli.Factory, guest, listen string) error {
	c, err := f.Client()
	if err != nil {
		return err
	}
	// A guest without a screen is told of now, not when somebody looks.
	screen, err := c.Display(ctx, guest)
	if err != nil {
		return err
	}
	screen.Close()
	network, address := "tcp", listen
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		network, address = "unix", path
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if network == "unix" {
		if err := os.Chmod(address, 0o600); err != nil {
			l.Close()
			return err
		}
	}
	fmt.Fprintf(f.Streams.Out, "%s\n", l.Addr())
	f.Streams.Notef("point a VNC viewer there; interrupt to end")
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var viewers sync.WaitGroup
	defer viewers.Wait()
	for {
		viewer, err := l.Accept()
		if err != nil {
			return context.Cause(ctx)
		}
		viewers.Go(func() {
			if err := lead(ctx, c, guest, viewer); err != nil && ctx.Err() == nil {
				f.Streams.Warnf("%v", err)
			}
		})
	}
}

// lead leads one viewer to the screen until either ends.
func lead(ctx context.Context, c *client.Client, guest string, viewer net.Conn) error {
	defer viewer.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	screen, err := c.Display(ctx, guest)
	if err != nil {
		return err
	}
	defer screen.Close()
	stop := context.AfterFunc(ctx, func() { viewer.Close() })
	defer stop()
	go func() {
		defer cancel()
		io.Copy(viewer, screen) // how it ended is no news: the viewer sees it
	}()
	io.Copy(screen, viewer)
	return nil
}

// NewDebug makes "lodge debug"; inside holds the commands about lodged itself.
func NewDebug(f *cli.Factory, inside ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: "debug GUEST [WHAT]", Short: "Look into a guest that hangs, or into lodged",
		Long: `Do to a guest that hangs what its engine offers: without WHAT, say what that is.
Usual are sysrq-t and sysrq-w (what its kernel does), nmi, reset, stack.`,
		Example: "  lodge debug vm1\n  lodge debug vm1 sysrq-t\n  lodge debug vm1 nmi\n  lodge debug graph",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return cli.Usagef(cmd, "give GUEST, and WHAT to do")
			}
			return nil
		},
		ValidArgsFunction: secondOfGuestDebugs(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				all, err := debugs(cmd.Context(), c, args[0])
				if err == nil && len(all) == 0 {
					err = &api.Error{Kind: api.KindUnsupported, Ref: "guest/" + args[0], Detail: "its engine has nothing for guests that hang", Hint: "look into it with lodge logs and lodge exec"}
				}
				for _, d := range all {
					fmt.Fprintln(f.Streams.Out, d)
				}
				return err
			}
			r, err := c.Debug(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			defer r.Close()
			text, err := io.ReadAll(r)
			if len(text) > 0 {
				fmt.Fprintln(f.Streams.Out, strings.TrimRight(cli.Clean(string(text)), "\n"))
			}
			return err
		},
	}
	cmd.AddCommand(inside...)
	return cmd
}

// debugs lists what the engine of a guest offers.
func debugs(ctx context.Context, c *client.Client, guest string) ([]string, error) {
	g, err := c.Guest(ctx, guest)
	if err != nil {
		return nil, err
	}
	all, err := c.Engines(ctx)
	for _, e := range all {
		if e.Name == g.Engine {
			return e.Debugs, nil
		}
	}
	return nil, err
}

func secondOfGuestDebugs(f *cli.Factory) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		return secondOf(f, func(ctx context.Context, c *client.Client) ([]string, error) { return debugs(ctx, c, args[0]) })(cmd, args, word)
	}
}
