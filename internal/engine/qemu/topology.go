package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// machineEnv is the variable of QEMU's environment that tells a later daemon
// what machine it was started as.
const machineEnv = "LODGE_MACHINE="

// environMax bounds what is read of it. A QEMU that its guest took over could
// have written anything there.
const environMax = 1 << 20

// asStarted returns the machine that QEMU was started as.
func (l *link) asStarted() (w hardware, err error) {
	f, err := os.Open("/proc/" + strconv.Itoa(l.held.State().Pid) + "/environ")
	if err != nil {
		return w, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, environMax))
	if err != nil {
		return w, err
	}
	for v := range strings.SplitSeq(string(text), "\x00") {
		if about, ok := strings.CutPrefix(v, machineEnv); ok {
			return w, json.Unmarshal([]byte(about), &w)
		}
	}
	return w, fmt.Errorf("QEMU was not started by Lodge: %s is not in its environment", machineEnv)
}

// pciDevice is a device as query-pci tells it.
type pciDevice struct {
	ID     string `json:"qdev_id"`
	Bridge *struct {
		Devices []pciDevice `json:"devices"`
	} `json:"pci_bridge"`
}

// behind returns the names of devices by the ports that they are plugged into.
func behind(all []pciDevice) map[string]string {
	ports := map[string]string{}
	for _, d := range all {
		if d.Bridge == nil {
			continue
		}
		for _, in := range d.Bridge.Devices {
			ports[d.ID] = in.ID
		}
	}
	return ports
}

// Names of devices and their back ends.
const (
	diskPrefix   = "disk-"
	nicPrefix    = "nic-"
	netPrefix    = "net-"
	modulePrefix = "module"
	cpuPrefix    = "cpu"
)

// machine returns the machine as it is now, with all that was plugged and
// without what was taken away.
func (l *link) machine(ctx context.Context) (hardware, error) {
	w, err := l.asStarted()
	if err != nil {
		return w, err
	}
	var buses []struct {
		Devices []pciDevice `json:"devices"`
	}
	if err := l.do(ctx, "query-pci", nil, &buses); err != nil {
		return w, err
	}
	ports := map[string]string{}
	for _, b := range buses {
		for port, id := range behind(b.Devices) {
			ports[port] = id
		}
	}
	in := func(port, id string) bool { return port == "" || ports[port] == id }
	w.Drives = slices.DeleteFunc(w.Drives, func(d drive) bool { return !in(d.Port, diskPrefix+d.Name) })
	w.Cards = slices.DeleteFunc(w.Cards, func(c card) bool { return !in(c.Port, nicPrefix+c.Name) })
	if err := l.addPlugged(ctx, &w, ports); err != nil {
		return w, err
	}
	return w, l.addModules(ctx, &w)
}

// addPlugged adds drives and cards that w was not started with.
func (l *link) addPlugged(ctx context.Context, w *hardware, ports map[string]string) error {
	for _, port := range w.Ports {
		id := ports[port]
		if name, ok := strings.CutPrefix(id, diskPrefix); ok && !slices.ContainsFunc(w.Drives, func(d drive) bool { return d.Name == name }) {
			d, err := l.driveOf(ctx, name)
			if err != nil {
				return err
			}
			d.Port = port
			w.Drives = append(w.Drives, d)
		}
		if name, ok := strings.CutPrefix(id, nicPrefix); ok && !slices.ContainsFunc(w.Cards, func(c card) bool { return c.Name == name }) {
			c := card{Name: name, Port: port}
			if err := l.property(ctx, id, "mac", &c.MAC); err != nil {
				return err
			}
			if err := l.property(ctx, id, "host_mtu", &c.MTU); err != nil {
				return err
			}
			w.Cards = append(w.Cards, c)
		}
	}
	return nil
}

func (l *link) property(ctx context.Context, device, name string, value any) error {
	return l.do(ctx, "qom-get", map[string]any{"path": "/machine/peripheral/" + device, "property": name}, value)
}

// node is a node of the block layer as QEMU tells it.
type node struct {
	Name     string `json:"node-name"`
	Driver   string `json:"drv"`
	ReadOnly bool   `json:"ro"`
}

func (l *link) nodes(ctx context.Context) (all []node, err error) {
	return all, l.do(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &all)
}

func (l *link) driveOf(ctx context.Context, name string) (drive, error) {
	all, err := l.nodes(ctx)
	if err != nil {
		return drive{}, err
	}
	i := slices.IndexFunc(all, func(n node) bool { return n.Name == nodeName(name) })
	if i < 0 {
		return drive{}, fmt.Errorf("the disk %s has no content", name)
	}
	return drive{Name: name, Format: all[i].Driver, ReadOnly: all[i].ReadOnly, Shared: all[i].ReadOnly}, nil
}

// slot is a place for a processor as QEMU tells it: one with a path is taken.
type slot struct {
	Type  string `json:"type"`
	Path  string `json:"qom-path"`
	Props struct {
		Socket int `json:"socket-id"`
	} `json:"props"`
}

// slots returns the places for processors, the lowest first.
func (l *link) slots(ctx context.Context) (all []slot, err error) {
	err = l.do(ctx, "query-hotpluggable-cpus", nil, &all)
	slices.SortFunc(all, func(a, b slot) int { return a.Props.Socket - b.Props.Socket })
	return all, err
}

// modules returns the sizes of memory modules by their names.
func (l *link) modules(ctx context.Context) (map[string]uint64, error) {
	var all []struct {
		Data struct {
			ID   string `json:"id"`
			Size uint64 `json:"size"`
		} `json:"data"`
	}
	err := l.do(ctx, "query-memory-devices", nil, &all)
	sizes := map[string]uint64{}
	for _, m := range all {
		sizes[m.Data.ID] = m.Data.Size
	}
	return sizes, err
}

func processorName(socket int) string { return cpuPrefix + strconv.Itoa(socket) }

func moduleName(n int) string { return modulePrefix + strconv.Itoa(n) }

// addModules adds the processors and the memory that w was not started with.
func (l *link) addModules(ctx context.Context, w *hardware) error {
	if w.Kind != "q35" {
		return nil
	}
	all, err := l.slots(ctx)
	if err != nil {
		return err
	}
	w.Plugged = nil
	for _, s := range all {
		if s.Path != "" && s.Props.Socket >= w.CPUs {
			w.Plugged = append(w.Plugged, plug{ID: processorName(s.Props.Socket), Driver: s.Type, Socket: s.Props.Socket})
		}
	}
	sizes, err := l.modules(ctx)
	if err != nil {
		return err
	}
	for n := range w.Modules {
		if size, ok := sizes[moduleName(n)]; ok {
			w.Plugged = append(w.Plugged, plug{ID: moduleName(n), Size: size})
		}
	}
	return nil
}
