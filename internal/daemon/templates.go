package daemon

import (
	"context"
	"path/filepath"

	"lodge/internal/control/guests"
	"lodge/internal/control/templates"
)

// templateShare is the part of the host's memory that templates may take
// together when nobody says how much: one in so many bytes.
const templateShare = 8

// openTemplates finds the memory images that guests start warm from. None are
// used while everything goes down, but what was being made is ended.
func (d *daemon) openTemplates(ctx context.Context) (err error) {
	budget := d.opt.Templates
	if budget == nil {
		facts, err := hostFacts()
		if err != nil {
			return err
		}
		share := facts.memory / templateShare
		budget = &share
	}
	d.templates, err = templates.Open(ctx, templates.Options{
		Dir: filepath.Join(d.opt.DataDir, "templates"), RunDir: filepath.Join(d.opt.RunDir, "templates"),
		Keepers: d.keepers, Engines: d.drivers.engines, Cgroups: d.cgroups, Volume: layers{}.Volume,
		IDBase: guests.SpareIDs, Budget: *budget, Log: d.log,
	})
	return err
}
