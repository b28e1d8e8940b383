package guest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

func newShow(f *cli.Factory) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use: "show GUEST…", Short: "Show all about guests", Aliases: []string{"inspect"},
		Example:           "  lodge show web1\n  lodge show web1 -o yaml",
		Args:              cli.Some("GUEST"),
		ValidArgsFunction: completeGuests(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd.Context(), f, &output, args)
		},
	}
	output.Flags(cmd)
	return cmd
}

// notBooted is the code of a problem of guests that no operating system runs in.
const notBooted = "not-booted"

// show prints one guest as an object, several as an array.
func show(ctx context.Context, f *cli.Factory, output *cli.Output, names []string) error {
	c, err := f.Client()
	if err != nil {
		return err
	}
	var list []api.Guest
	for _, n := range names {
		g, err := c.Guest(ctx, n)
		if err != nil {
			return err
		}
		list = append(list, g)
	}
	if !output.Table() {
		if len(list) == 1 {
			return f.Print(output, list[0], nil)
		}
		return f.Print(output, list, nil)
	}
	for i, g := range list {
		if i > 0 {
			fmt.Fprintln(f.Streams.Out)
		}
		if err := details(g, acceleration(ctx, c, g.Engine), time.Now()).Write(f.Streams.Out); err != nil {
			return err
		}
		if g.Last != "" {
			fmt.Fprintf(f.Streams.Out, "\n%s:\n%s\n", lastTitle(g), cli.Clean(g.Last))
		}
	}
	return nil
}

// lastTitle says of which moment a guest's last words are.
func lastTitle(g api.Guest) string {
	switch {
	case g.Problem != nil && g.Problem.Code == notBooted:
		return "what it said last before it went no further"
	case g.Problem != nil && (g.Phase == "running" || g.Phase == "paused"):
		return "what it said last before it was seen not to be well"
	}
	return "what it said last before it ended badly"
}

// details is everything about a guest, one thing a line; what is not set is
// left out.
func details(g api.Guest, accel string, now time.Time) *cli.Table {
	t := &cli.Table{}
	add := func(name, value string) {
		if value != "" && value != "-" {
			t.Row(name, value)
		}
	}
	add("name", g.Name)
	add("phase", phase(g))
	if p := g.Problem; p != nil {
		tried := ""
		if p.Attempts > 1 {
			tried = fmt.Sprintf(", tried %d times", p.Attempts)
		}
		add("problem", fmt.Sprintf("%s (%s%s)", p.Message, cli.Ago(p.Since, now), tried))
		add("hint", p.Hint)
	}
	add("wanted", g.Wanted)
	add("model", g.Model)
	add("engine", cmp.Or(g.Engine, g.Asked))
	add("acceleration", accel)
	detailMachine(g, add)
	add("image", g.Image)
	add("digest", g.ImageDigest)
	add("host", g.Host)
	for _, n := range g.NICs {
		add("network", strings.Join(strings.Fields(strings.Join([]string{n.Name, n.Network, n.MAC, n.IPv4, n.IPv6}, " ")), " "))
	}
	add("addresses", strings.Join(others(g), " "))
	add("publish", strings.Join(g.Publish, " "))
	detailLimits(g, add)
	detailRun(g, now, add)
	for _, k := range slices.Sorted(maps.Keys(g.Labels)) {
		add("label", k+"="+g.Labels[k])
	}
	for _, k := range slices.Sorted(maps.Keys(g.Env)) {
		add("env", k+"="+g.Env[k])
	}
	add("created", g.Created.Local().Format(time.DateTime)+" ("+cli.Ago(g.Created, now)+")")
	add("id", g.ID)
	return t
}

// others are the addresses that a guest says it has beside those of its cards.
func others(g api.Guest) []string {
	return slices.DeleteFunc(slices.Clone(g.Addresses), func(a string) bool {
		return slices.ContainsFunc(g.NICs, func(n api.NIC) bool {
			v4, _, _ := strings.Cut(n.IPv4, "/")
			v6, _, _ := strings.Cut(n.IPv6, "/")
			return a == v4 || a == v6
		})
	})
}

// acceleration is what an engine says of how its guests' processors are made.
func acceleration(ctx context.Context, c *client.Client, engine string) string {
	if engine == "" {
		return ""
	}
	e, err := c.Engine(ctx, engine)
	if err != nil {
		return "" // it is a detail
	}
	for _, f := range e.Facts {
		if f.Name == "acceleration" {
			return f.Value
		}
	}
	return ""
}

// detailMachine is what only guests with a machine of their own have.
func detailMachine(g api.Guest, add func(name, value string)) {
	if g.Phase == "running" && !g.Ready {
		add("ready", "not yet: its init has not said that it is up")
	}
	add("machine", g.Machine)
	add("firmware", g.Firmware)
	if g.TPM {
		add("tpm", "yes")
	}
	add("agent", cli.Clean(g.Agent))
	add("processor", g.CPUModel)
	add("kernel", cmp.Or(g.Booted, g.Kernel))
	for _, d := range g.Disks {
		words := d.Name + " " + units.Bytes(d.SizeBytes)
		if d.ISO != "" {
			words = d.Name + " " + d.ISO
		}
		add("further disk", words)
	}
	for _, p := range g.Pending {
		add("with next start", p)
	}
}

func detailLimits(g api.Guest, add func(name, value string)) {
	add("cpus", cpus(g.CPUs)+fmt.Sprintf(" (weight %d)", g.CPUWeight))
	add("memory", memory(g.MemoryBytes))
	add("swap", cli.Limit(g.SwapBytes))
	add("disk", cli.Limit(g.DiskBytes)+" in pool "+g.Pool)
	add("processes", fmt.Sprint(g.Processes))
	if io := g.IO; io != (api.IO{}) {
		add("io", fmt.Sprintf("read %s/s %d/s, write %s/s %d/s (0 is no limit)", units.Bytes(io.ReadBPS), io.ReadIOPS, units.Bytes(io.WriteBPS), io.WriteIOPS))
	}
}

func detailRun(g api.Guest, now time.Time, add func(name, value string)) {
	add("command", strings.Join(g.Command, " "))
	add("restart", g.Restart)
	if g.Restarts > 0 {
		add("restarts", fmt.Sprint(g.Restarts))
	}
	if a := g.Autostart; a.Enabled {
		add("autostart", fmt.Sprintf("order %d, delay %ds", a.Order, a.Delay))
	}
	if g.Ephemeral {
		add("ephemeral", "removed once it has stopped")
	}
	if g.CloudInit {
		add("cloud-init", "user-data given")
	}
	add("stop-timeout", fmt.Sprintf("%ds", g.StopTimeout))
	if g.Started != nil {
		add("started", cli.Ago(*g.Started, now))
	}
	if g.Pid > 0 {
		add("pid", fmt.Sprint(g.Pid))
	}
	if x := g.Exit; x != nil {
		how := fmt.Sprintf("status %d", x.Code)
		if x.Signal != "" {
			how += " by signal " + x.Signal
		}
		if x.OOM {
			how += ", out of memory"
		}
		add("last exit", how+", "+cli.Ago(x.At, now))
	}
}
