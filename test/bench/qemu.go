package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// machines measures virtual machines: cold, from templates, copied, saved.
func (b *bench) machines(ctx context.Context) error {
	const group, who = "vm", "lodge"
	s, err := b.startModels(ctx, group, "linux/debian-12")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := b.probe(ctx); err != nil {
		return err
	}
	if err := s.anew(ctx, "--template-memory", "0"); err != nil {
		return err
	}
	cold, err := b.machineBoots(ctx, s)
	if err != nil {
		return err
	}
	if err := s.anew(ctx); err != nil {
		return err
	}
	if err := b.templates(ctx, s, cold); err != nil {
		return err
	}
	if err := b.machineExecs(ctx, s); err != nil {
		return err
	}
	if err := b.memorySnapshots(ctx, s); err != nil {
		return err
	}
	rows, err := b.copies(ctx, s, "p", group, who)
	if err != nil {
		return err
	}
	b.report.add(rows...)
	if rows, err = b.calls(ctx, s, "p", group, who); err != nil {
		return err
	}
	b.report.add(rows...)
	if rows, err = b.traffic(ctx, s, "p", group, who); err != nil {
		return err
	}
	b.report.add(rows...)
	return b.clones(ctx, s)
}

// probe measures how long it takes to know whether this host's KVM is of use.
func (b *bench) probe(ctx context.Context) error {
	var took Samples
	said := ""
	for range 5 {
		begun := time.Now()
		text, err := command(ctx, nil, filepath.Join(b.bin, "lodge"+"d"), "kvm-probe")
		if err != nil {
			said = firstLine(err.Error())
		} else {
			said = firstLine(text)
		}
		took.add(time.Since(begun))
	}
	row := timed("vm", "probe of KVM", "lodge", took).atMost(1000)
	row.Note = said
	b.report.add(row)
	return nil
}

// machineBoots boots a guest cold, and QEMU by hand with the same kernel and
// image, by turns.
func (b *bench) machineBoots(ctx context.Context, s *server) (cold Samples, err error) {
	var own, plain, starts Samples
	h, err := b.newByHand(ctx, s)
	if err != nil {
		return nil, err
	}
	for range 3 {
		runs, took, err := s.timeLaunch(ctx, s.ready, "debian/12", "--model", "vm", "--memory", "256MiB")
		if err != nil {
			return nil, err
		}
		own.add(took)
		starts.add(runs)
		if took, err = h.boot(ctx); err != nil {
			return nil, err
		}
		plain.add(took)
	}
	const what = "cold launch of Debian with systemd, to ready"
	base := timed("vm", what, "QEMU by hand, q35", plain)
	base.Note = "same kernel, initramfs and image; no record, network, jail"
	b.report.add(timed("vm", what, "lodge", own).beside(base).withinRatio(1), base, timed("vm", "launch until QEMU runs, the whole command", "lodge", starts).atMost(50))
	return own, nil
}

// templates launches guests from the memory of one that was booted before.
func (b *bench) templates(ctx context.Context, s *server, cold Samples) error {
	args := []string{"debian/12", "--model", "vm", "--memory", "256MiB"}
	if _, _, err := s.timeLaunch(ctx, s.ready, args...); err != nil { // which has the template made
		return err
	}
	var warm, shortest Samples
	warmed := func() bool { return len(shortest) > 0 && shortest[len(shortest)-1] < cold.least()/4 }
	for end := time.Now().Add(bootLimit); !warmed() && time.Now().Before(end); {
		_, took, err := s.timeLaunch(ctx, s.answers, args...)
		if err != nil {
			return err
		}
		shortest.add(took)
	}
	if !warmed() {
		b.report.skip("launch from a template: it was not there after %v", bootLimit)
		return nil
	}
	for range 10 {
		_, took, err := s.timeLaunch(ctx, s.answers, args...)
		if err != nil {
			return err
		}
		warm.add(took)
	}
	base := timed("vm", "launch", "lodge, cold", cold)
	b.report.add(timed("vm", "launch from a template, to an answered exec", "lodge", warm).atMost(500))
	b.report.add(timed("vm", "the same beside a cold launch", "lodge", warm).beside(base).withinRatio(1.0 / 25))
	return nil
}

// machineExecs measures exec in a machine: the first, and later ones.
func (b *bench) machineExecs(ctx context.Context, s *server) error {
	var first Samples
	for i := range 3 {
		name := fmt.Sprintf("e%d", i)
		if _, err := s.lodge(ctx, "launch", "debian/12", name, "--model", "vm", "--memory", "256MiB"); err != nil {
			return err
		}
		if err := s.ready(ctx, name); err != nil {
			return err
		}
		begun := time.Now()
		if _, err := s.lodge(ctx, "exec", name, "--", "true"); err != nil {
			return err
		}
		first.add(time.Since(begun))
		if _, err := s.lodge(ctx, "rm", "--force", name); err != nil {
			return err
		}
	}
	b.report.add(timed("vm", "exec true, the first of a guest, the whole command", "lodge", first).atMost(45))
	for _, g := range []struct{ name, model string }{{"p", "vm"}, {"o", "os"}} {
		if _, err := s.lodge(ctx, "launch", "debian/12", g.name, "--model", g.model, "--memory", "256MiB"); err != nil {
			return err
		}
		if err := s.ready(ctx, g.name); err != nil {
			return err
		}
	}
	return b.execs(ctx, s, "vm", 15)
}

// memorySnapshots takes and restores snapshots with 256 MiB of memory.
func (b *bench) memorySnapshots(ctx context.Context, s *server) error {
	var save, restore Samples
	for i := range 5 {
		name := fmt.Sprintf("m%d", i)
		begun := time.Now()
		if _, err := s.lodge(ctx, "snapshot", "create", "p", name, "--memory"); err != nil {
			return err
		}
		save.add(time.Since(begun))
		begun = time.Now()
		if _, err := s.lodge(ctx, "snapshot", "restore", "p", name, "--start"); err != nil {
			return err
		}
		if err := s.answers(ctx, "p"); err != nil {
			return err
		}
		restore.add(time.Since(begun))
	}
	b.report.add(timed("vm", "snapshot with memory, 256 MiB", "lodge", save).atMost(500),
		timed("vm", "a running guest goes back to it: its end, restore, answered exec", "lodge", restore).atMost(500))
	return nil
}

// clones has ten copies of one running guest.
func (b *bench) clones(ctx context.Context, s *server) error {
	const n = 10
	var each Samples
	for i := range n {
		name := fmt.Sprintf("k%d", i)
		begun := time.Now()
		if _, err := s.lodge(ctx, "clone", "p", name, "--running"); err != nil {
			return err
		}
		if err := s.answers(ctx, name); err != nil {
			return err
		}
		each.add(time.Since(begun))
	}
	b.report.add(timed("vm", "copy of a running guest, to an answered exec", "lodge", each))
	time.Sleep(settle)
	sum := 0.0
	for i := range n {
		g, err := s.guest(ctx, fmt.Sprintf("k%d", i))
		if err != nil {
			return err
		}
		sum += proportional(g.Pid)
	}
	b.report.add(single("vm", fmt.Sprintf("memory of an idle copy, of %d (PSS)", n), "lodge", "MB", sum/n).atMost(50))
	return nil
}
