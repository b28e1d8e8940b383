package daemon

import (
	"context"
	"fmt"
	"reflect"

	"lodge/api"
	"lodge/internal/base/units"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// probeEngines finds out anew what can run guests here.
func (d *daemon) probeEngines(ctx context.Context) (all []api.Engine, err error) {
	for _, i := range d.drivers.engines.Probe(ctx) {
		all = append(all, d.engineAPI(i))
	}
	return all, nil
}

// engineAPI describes an engine to a person.
func (d *daemon) engineAPI(i engine.Info) api.Engine {
	e := api.Engine{
		Name: i.Name, Model: string(i.Model), Version: i.Version, Usable: i.Missing == "", Missing: i.Missing, Hint: i.Hint,
		Can: abilities(i.Can), Form: string(i.Form), Kernel: i.Kernel, CPUModels: i.CPUModels, CPUFeatures: i.CPUFeatures, Debugs: i.Debugs, Overhead: i.Overhead.Memory, OverheadCPUs: i.Overhead.CPUs,
	}
	for _, m := range i.Machines {
		e.Machines = append(e.Machines, api.MachineKind(m))
	}
	for _, f := range i.Facts {
		e.Facts = append(e.Facts, api.Fact(f))
	}
	if i.Can.Save && i.Can.Renew && i.Form == guest.Volume {
		n, size := d.templates.Size()
		e.Facts = append(e.Facts,
			api.Fact{Name: "templates", Value: fmt.Sprintf("%d, %s of memory", n, units.Bytes(size))},
			api.Fact{Name: "standing ready", Value: count(d.guests.Standbys(), "guest")})
	}
	return e
}

// abilities is the engine's abilities by the names they have in JSON, so that
// one that is added is shown without a word here.
func abilities(c engine.Can) map[string]bool {
	can, v := map[string]bool{}, reflect.ValueOf(c)
	for f, is := range v.Fields() {
		can[f.Tag.Get("json")] = is.Bool()
	}
	return can
}
