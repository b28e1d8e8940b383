package guest

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

type topOptions struct {
	*cli.Factory
	order order
	every cli.SecondsFlag
}

func newTop(f *cli.Factory) *cobra.Command {
	o := &topOptions{Factory: f, order: order{key: 'c'}}
	cmd := &cobra.Command{
		Use: "top", Short: "Watch what all guests use",
		Long:    "Watch what all running guests use. Keys: " + sortKeys + ".\nWithout a terminal it prints once.",
		Example: "  lodge top\n  lodge top --every 5s",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !f.Streams.OutTTY || !f.Streams.InTTY {
				stats := &statsOptions{Factory: f, once: true}
				return stats.run(cmd.Context(), nil)
			}
			return o.run(cmd.Context())
		},
	}
	cmd.Flags().Var(&o.every, "every", "read this often (default 1s)")
	return cmd
}

func (o *topOptions) run(ctx context.Context) error {
	c, err := o.Client()
	if err != nil {
		return err
	}
	before, err := c.Usage(ctx)
	if err != nil {
		return err
	}
	restore, err := o.Streams.Raw()
	if err != nil {
		return err
	}
	defer restore()
	// The alternate screen, without a cursor; what was there comes back.
	fmt.Fprint(o.Streams.Out, "\x1b[?1049h\x1b[?25l")
	defer fmt.Fprint(o.Streams.Out, "\x1b[?25h\x1b[?1049l")
	return o.watch(ctx, c, before)
}

// watch redraws until q. A reading that fails is shown and tried again: lodged
// may be restarting.
func (o *topOptions) watch(ctx context.Context, c *client.Client, before []api.Usage) error {
	keys := make(chan byte)
	go o.readKeys(keys)
	every := time.Second
	if o.every.Value != nil && *o.every.Value > 0 {
		every = time.Duration(*o.every.Value) * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	list, trouble := loads(nil, before), ""
	for {
		o.draw(list, trouble)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case k, open := <-keys:
			if !open || !o.key(k) {
				return nil
			}
		case <-tick.C:
			now, err := c.Usage(ctx)
			if err != nil {
				trouble = err.Error()
				break
			}
			list, before, trouble = loads(before, now), now, ""
		}
	}
}

// readKeys ends with the program, or with the terminal.
func (o *topOptions) readKeys(keys chan<- byte) {
	defer close(keys)
	buf := make([]byte, 1)
	for {
		if n, err := o.Streams.In.Read(buf); err != nil || n == 0 {
			return
		}
		keys <- buf[0]
	}
}

// key obeys a key and reports whether to go on.
func (o *topOptions) key(k byte) bool {
	switch k {
	case 'q', 'Q', 3: // ^C, which a raw terminal gives as a key
		return false
	case 'r':
		o.order.reverse = !o.order.reverse
	case 'c', 'm', 'n', 't', 'd', 'p':
		o.order = order{key: k}
	}
	return true
}

func (o *topOptions) draw(list []load, trouble string) {
	sortLoads(list, o.order)
	rows, cols := o.Streams.Size()
	var sum load
	for _, l := range list {
		sum.CPUPercent += l.CPUPercent
		sum.MemoryBytes += l.MemoryBytes
		sum.Processes += l.Processes
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d guests run: cpu %.0f%%, memory %s, %d processes\n%s\n\n", len(list), sum.CPUPercent, units.Bytes(sum.MemoryBytes), sum.Processes, sortKeys)
	if trouble != "" {
		fmt.Fprintf(&b, "%s\n\n", cli.Clean(trouble))
	}
	loadTable(list).Write(&b)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	lines = lines[:min(len(lines), int(rows)-1)]
	var screen strings.Builder
	screen.WriteString("\x1b[H")
	for _, l := range lines {
		r := []rune(l)
		screen.WriteString(string(r[:min(len(r), int(cols))]) + "\x1b[K\r\n")
	}
	screen.WriteString("\x1b[J")
	fmt.Fprint(o.Streams.Out, screen.String())
}
