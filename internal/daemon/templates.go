package daemon

import (
	"context"
	"path/filepath"

	"lodge/internal/control/guests"
	"lodge/internal/control/templates"
	"lodge/internal/fabric"
	"lodge/internal/model/guest"
)

// warmShare is the part of the host's memory that templates may take together,
// and guests that stand ready, when nobody says how much: one in so many bytes.
const warmShare = 8

// orShare is a budget that was chosen, or the share of the host's memory.
func orShare(chosen *uint64, share uint64) (uint64, error) {
	if chosen != nil {
		return *chosen, nil
	}
	facts, err := hostFacts()
	return facts.memory / share, err
}

// openTemplates finds the memory images that guests start warm from. None are
// used while everything goes down, but what was being made is ended.
func (d *daemon) openTemplates(ctx context.Context) (err error) {
	budget, err := orShare(d.opt.Templates, warmShare)
	if err != nil {
		return err
	}
	d.templates, err = templates.Open(ctx, templates.Options{
		Dir:     filepath.Join(d.opt.DataDir, "templates"),
		Keepers: d.keepers, Engines: d.drivers.engines, Cgroups: d.cgroups, Volume: layers{}.Volume,
		IDBase: guests.SpareIDs, Cards: fabric.Cards(d.opt.Prefix), Budget: budget, Log: d.log,
		Made: func(g guest.Guest) { d.guests.Standby(g) },
	})
	return err
}
