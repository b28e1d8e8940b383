package main

import (
	"context"
	"time"
)

// changes measures a change of model: how much longer it takes to have a guest
// become another model and start than only to start.
func (b *bench) changes(ctx context.Context) error {
	const group, who, name = "change", "lodge", "c"
	s, err := b.startModels(ctx, group, "um/debian-sid", "linux/debian-12")
	if err != nil {
		return err
	}
	defer s.stop()
	if _, err := s.lodge(ctx, "launch", "debian/12", name, "--memory", "256MiB"); err != nil {
		return err
	}
	fill := "mkdir /srv/tree; cd /srv/tree; for d in $(seq 50); do mkdir $d; for f in $(seq 100); do head -c 38k /dev/urandom >$d/$f; done; done"
	if _, err := s.lodge(ctx, "exec", name, "--", "sh", "-c", fill); err != nil {
		return err
	}
	if _, err := s.lodge(ctx, "stop", name); err != nil {
		return err
	}
	start := func() (time.Duration, error) {
		begun := time.Now()
		_, err := s.lodge(ctx, "start", name)
		return time.Since(begun), err
	}
	into := map[string]Samples{}
	for range 3 {
		for _, model := range []string{"paravirt", "os"} {
			begun := time.Now()
			if _, err := s.lodge(ctx, "model", name, model); err != nil {
				return err
			}
			if _, err := start(); err != nil {
				return err
			}
			first := time.Since(begun)
			if err := s.ready(ctx, name); err != nil {
				return err
			}
			if _, err := s.lodge(ctx, "stop", name); err != nil {
				return err
			}
			again, err := start()
			if err != nil {
				return err
			}
			if err := s.ready(ctx, name); err != nil {
				return err
			}
			if _, err := s.lodge(ctx, "stop", name); err != nil {
				return err
			}
			list := into[model]
			list.add(first - again)
			into[model] = list
		}
	}
	b.report.add(timed(group, "of 190 MB in 5,000 files, tree to volume, beyond a start", who, into["paravirt"]).atMost(1500),
		timed(group, "volume to tree, beyond a start", who, into["os"]).atMost(1500))
	return nil
}
