package guest

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/internal/cli"
)

// specFlags are the flags of what a guest is; launch, create and run have them.
type specFlags struct {
	model     cli.OneOf
	cpus      float64
	weight    int
	memory    cli.SizeFlag
	swap      cli.SizeFlag
	disk      diskFlag
	isos      []string
	machine   machineFlags
	processes int64
	io        ioFlags
	pool      string
	networks  []string
	publish   []string
	env       []string
	envFile   []string
	labels    []string
	userData  string
	restart   cli.OneOf
	autostart bool
	order     int
	delay     cli.SecondsFlag
	ephemeral bool
	timeout   cli.SecondsFlag
	count     int
}

func (s *specFlags) flags(cmd *cobra.Command, f *cli.Factory) {
	fl := cmd.Flags()
	s.limits(cmd)
	s.model.Words = []string{"os", "vm", "paravirt"}
	s.model.Var(cmd, "model", "", "kind of virtual server (default os)")
	s.machine.flags(cmd, f)
	fl.StringArrayVar(&s.isos, "iso", nil, "disc to put in: [NAME=]FILE of the host")
	fl.StringVar(&s.pool, "pool", "", "pool of the writable layer (default: the host's default pool)")
	fl.StringSliceVar(&s.networks, "network", nil, "network to be on; may be given again; none: no network (default: default)")
	fl.StringSliceVarP(&s.publish, "publish", "p", nil, "lead a port of the host here: [ADDRESS:]HOSTPORT:GUESTPORT[/udp]")
	fl.StringArrayVarP(&s.env, "env", "e", nil, "environment variable KEY=VALUE, or KEY to pass ours on")
	fl.StringArrayVar(&s.envFile, "env-file", nil, "file of KEY=VALUE lines")
	fl.StringSliceVarP(&s.labels, "label", "l", nil, "label KEY=VALUE")
	fl.StringVar(&s.userData, "cloud-init", "", "file of cloud-init user-data")
	s.restart.Words = []string{"never", "on-failure", "always"}
	s.restart.Var(cmd, "restart", "", "what to do when it ends by itself (default never)")
	s.autostartFlags(cmd)
	fl.BoolVar(&s.ephemeral, "ephemeral", false, "remove it once it has stopped")
	fl.Var(&s.timeout, "stop-timeout", "how long a clean stop may take (default 30s)")
	fl.IntVar(&s.count, "count", 0, "make this many, called NAME-1, NAME-2, …")
	_ = cmd.RegisterFlagCompletionFunc("pool", f.Complete(0, cli.PoolNames))
	_ = cmd.RegisterFlagCompletionFunc("network", f.Complete(0, cli.NetworkNames))
}

// limits adds the flags of what can be changed while the guest runs.
func (s *specFlags) limits(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.Float64Var(&s.cpus, "cpus", 1, "processors' worth of time; 0 is all of the host's")
	fl.IntVar(&s.weight, "cpu-weight", 100, "share of the processors when they are short, 1 to 10000")
	fl.Var(&s.memory, "memory", "memory, such as 512MiB (default 512MiB)")
	fl.Var(&s.swap, "swap", "swap space")
	fl.Var(&s.disk, "disk", "size of its own disk; 0 is no limit (default 10GiB). With NAME=, of a further one")
	fl.Int64Var(&s.processes, "processes", 4096, "processes and threads at most")
	s.io.flags(cmd)
}

func (s *specFlags) autostartFlags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVar(&s.autostart, "autostart", false, "start it again with the host")
	fl.IntVar(&s.order, "autostart-order", 0, "place in the row of those that start with the host; lower is first")
	fl.Var(&s.delay, "autostart-delay", "wait this long after it before the next")
}

// spec reads the flags; what was not given stays lodged's to decide.
func (s *specFlags) spec(cmd *cobra.Command) (api.GuestSpec, error) {
	g := api.GuestSpec{
		Model: s.model.Value, MemoryBytes: s.memory.Value, SwapBytes: s.swap.Value, DiskBytes: s.disk.own.Value,
		Engine: s.machine.engine, Machine: s.machine.machine, Firmware: s.machine.firmware, TPM: s.machine.tpm,
		Kernel: s.machine.kernel, CPUModel: s.machine.cpuModel, Disks: s.disk.further,
		Pool: s.pool, Networks: s.networks, Publish: s.publish, Restart: s.restart.Value,
		Ephemeral: s.ephemeral, StopTimeout: s.timeout.Value,
		CPUs: given(cmd, "cpus", s.cpus), CPUWeight: given(cmd, "cpu-weight", s.weight),
		Processes: given(cmd, "processes", s.processes), Autostart: s.autostartSpec(cmd),
		IO: s.io.limits(cmd),
	}
	inserted, err := discs(s.isos)
	if err != nil {
		return g, err
	}
	g.Disks = append(g.Disks, inserted...)
	if g.Labels, err = pairs(cmd, "label", s.labels, nil); err != nil {
		return g, err
	}
	if g.Env, err = s.environment(cmd); err != nil {
		return g, err
	}
	if s.userData != "" {
		b, err := os.ReadFile(s.userData)
		if err != nil {
			return g, fmt.Errorf("--cloud-init: %w", err)
		}
		g.UserData = string(b)
	}
	if cmd.Flags().Changed("count") && s.count < 1 {
		return g, cli.Usagef(cmd, "--count must be at least 1")
	}
	return g, nil
}

func (s *specFlags) autostartSpec(cmd *cobra.Command) *api.Autostart {
	fl := cmd.Flags()
	if !fl.Changed("autostart") && !fl.Changed("autostart-order") && !fl.Changed("autostart-delay") {
		return nil
	}
	// An order or a delay means little without the thing itself.
	a := &api.Autostart{Enabled: s.autostart || !fl.Changed("autostart"), Order: s.order}
	if s.delay.Value != nil {
		a.Delay = *s.delay.Value
	}
	return a
}

// environment reads the files first, so that flags win.
func (s *specFlags) environment(cmd *cobra.Command) (map[string]string, error) {
	var list []string
	for _, name := range s.envFile {
		lines, err := readEnvFile(name)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		list = append(list, lines...)
	}
	return pairs(cmd, "env", append(list, s.env...), os.LookupEnv)
}

func readEnvFile(name string) ([]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var list []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if l := strings.TrimSpace(lines.Text()); l != "" && !strings.HasPrefix(l, "#") {
			list = append(list, l)
		}
	}
	return list, lines.Err()
}

// given is the flag's value, or nil when it was not given.
func given[T any](cmd *cobra.Command, flag string, v T) *T {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	return &v
}
