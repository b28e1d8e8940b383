package guest

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

// machineFlags are the flags of what a guest's machine is made of.
type machineFlags struct {
	engine   string
	machine  string
	firmware string
	kernel   string
	cpuModel string
	tpm      bool
}

func (m *machineFlags) flags(cmd *cobra.Command, f *cli.Factory) {
	fl := cmd.Flags()
	fl.StringVar(&m.engine, "engine", "", "what runs it, of several for its model (see: lodge engine ls)")
	fl.StringVar(&m.machine, "machine", "", "kind of machine, such as q35")
	fl.StringVar(&m.firmware, "firmware", "", "firmware that boots its disk: bios, uefi, uefi-secure")
	fl.StringVar(&m.kernel, "kernel", "", "kernel that it boots (see: lodge kernel ls)")
	fl.StringVar(&m.cpuModel, "cpu-model", "", "processor that it sees")
	fl.BoolVar(&m.tpm, "tpm", false, "give it a TPM")
	for name, pick := range map[string]func(api.Engine) []string{
		"engine":    func(e api.Engine) []string { return []string{e.Name} },
		"machine":   machineNames,
		"firmware":  firmwareNames,
		"cpu-model": func(e api.Engine) []string { return e.CPUModels },
	} {
		_ = cmd.RegisterFlagCompletionFunc(name, f.Complete(0, engineWords(pick)))
	}
}

func machineNames(e api.Engine) (names []string) {
	for _, m := range e.Machines {
		names = append(names, m.Name)
	}
	return names
}

func firmwareNames(e api.Engine) (names []string) {
	for _, m := range e.Machines {
		names = append(names, m.Firmware...)
	}
	return names
}

// engineWords completes with what pick takes of each engine.
func engineWords(pick func(api.Engine) []string) func(context.Context, *client.Client) ([]string, error) {
	return func(ctx context.Context, c *client.Client) ([]string, error) {
		all, err := c.Engines(ctx)
		var words []string
		seen := map[string]bool{}
		for _, e := range all {
			for _, w := range pick(e) {
				if !seen[w] {
					words = append(words, w)
				}
				seen[w] = true
			}
		}
		return words, err
	}
}

// diskFlag is the quota of the guest's own disk, and further disks by name.
type diskFlag struct {
	own     cli.SizeFlag
	further []api.Disk
}

// String, Set and Type make it a flag.
func (d *diskFlag) String() string { return d.own.String() }

// Set reads SIZE or NAME=SIZE.
func (d *diskFlag) Set(v string) error {
	name, size, ok := strings.Cut(v, "=")
	if !ok {
		return d.own.Set(v)
	}
	n, err := units.ParseBytes(size)
	if err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("%q has no name before the =", v)
	}
	d.further = append(d.further, api.Disk{Name: name, SizeBytes: n})
	return nil
}

// Type names the kind of value in the help.
func (d *diskFlag) Type() string { return "[NAME=]SIZE" }

// discs reads FILE or NAME=FILE arguments; a disc without a name is cdrom, the
// next cdrom-2. Files are those of the host that runs lodged.
func discs(given []string) ([]api.Disk, error) {
	var all []api.Disk
	for _, g := range given {
		name, file, ok := strings.Cut(g, "=")
		if !ok {
			name, file = "cdrom", g
			if n := len(all); n > 0 {
				name = fmt.Sprintf("cdrom-%d", n+1)
			}
		}
		abs, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		all = append(all, api.Disk{Name: name, ISO: abs})
	}
	return all, nil
}
