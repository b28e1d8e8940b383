package main

import (
	"context"
	"fmt"
	"time"
)

// The kernel of Debian 12's own package, which Lodge's choice is compared with.
const packagedKernel = "um/debian-12"

// paravirt measures guests on User-Mode Linux, as shipped: the kernel that Lodge
// chooses, on one processor, in the jail.
func (b *bench) paravirt(ctx context.Context) error {
	const group, who = "paravirt", "lodge"
	s, err := b.startModels(ctx, group, "um/debian-sid", packagedKernel)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := b.paravirtBoots(ctx, s); err != nil {
		return err
	}
	for _, g := range []struct{ name, model string }{{"p", "paravirt"}, {"o", "os"}} {
		if _, err := s.lodge(ctx, "launch", "debian/12", g.name, "--model", g.model, "--memory", "256MiB"); err != nil {
			return err
		}
		if err := s.ready(ctx, g.name); err != nil {
			return err
		}
	}
	rows, err := b.calls(ctx, s, "p", group, who)
	if err != nil {
		return err
	}
	native, err := b.calls(ctx, s, "o", group, "lodge, model os")
	if err != nil {
		return err
	}
	for i, r := range rows {
		r = r.beside(native[i])
		switch r.What {
		case "inside: getppid":
			r = r.atMost(11)
		case "inside: fork, exec and wait":
			r = r.atMost(6)
		}
		b.report.add(r, native[i])
	}
	if err := b.execs(ctx, s, group, 15); err != nil {
		return err
	}
	if rows, err = b.copies(ctx, s, "p", group, who); err != nil {
		return err
	}
	b.report.add(rows[0].atLeast(50), rows[1].atLeast(50))
	if rows, err = b.traffic(ctx, s, "p", group, who); err != nil {
		return err
	}
	b.report.add(rows[0].atLeast(1.5), rows[1].atLeast(1.5))
	if _, err := s.lodge(ctx, "rm", "--force", "p", "o"); err != nil {
		return err
	}
	return b.paravirtCrowd(ctx, s)
}

// paravirtBoots boots guests of Lodge's kernel on one processor and of the
// packaged one on all, by turns.
func (b *bench) paravirtBoots(ctx context.Context, s *server) error {
	var own, packaged, small Samples
	for range 3 {
		for _, way := range []struct {
			to   *Samples
			args []string
		}{
			{&own, []string{"debian/12", "--model", "paravirt", "--memory", "256MiB"}},
			{&packaged, []string{"debian/12", "--model", "paravirt", "--memory", "256MiB", "--kernel", packagedKernel, "--cpus", "2"}},
		} {
			_, took, err := s.timeLaunch(ctx, s.ready, way.args...)
			if err != nil {
				return err
			}
			way.to.add(took)
		}
	}
	for range 5 {
		_, took, err := s.timeLaunch(ctx, s.answers, "busybox", "--model", "paravirt", "--memory", "128MiB")
		if err != nil {
			return err
		}
		small.add(took)
	}
	const what = "launch of Debian with systemd, to ready"
	other := timed("paravirt", what, "packaged 6.1, unpinned", packaged)
	b.report.add(timed("paravirt", what, "lodge", own).beside(other).withinRatio(1.0/3), other)
	b.report.add(timed("paravirt", "launch of busybox, to an answered exec", "lodge", small).atMost(800))
	return nil
}

// execs measures exec in a guest called p, beside one of model os called o.
func (b *bench) execs(ctx context.Context, s *server, group string, limit float64) error {
	var of [2]Samples
	for range 30 {
		for i, name := range []string{"p", "o"} {
			begun := time.Now()
			if _, err := s.lodge(ctx, "exec", name, "--", "true"); err != nil {
				return err
			}
			of[i].add(time.Since(begun))
		}
	}
	base := timed(group, "exec true, the whole command", "lodge, model os", of[1])
	b.report.add(timed(group, base.What, "lodge", of[0]).beside(base).atMost(limit), base)
	return nil
}

// paravirtCrowd has 40 guests at once, and 20 of them idle.
func (b *bench) paravirtCrowd(ctx context.Context, s *server) error {
	const group, crowd, rest = "paravirt", 40, 20
	before := memory()["MemAvailable"]
	begun := time.Now()
	if _, err := s.lodge(ctx, "launch", "debian/12", "c", "--count", fmt.Sprint(crowd), "--model", "paravirt", "--memory", "128MiB"); err != nil {
		return err
	}
	for i := range crowd {
		if err := s.ready(ctx, fmt.Sprintf("c-%d", i+1)); err != nil {
			return err
		}
	}
	b.report.add(single(group, fmt.Sprintf("launch of %d Debian guests at once, all ready", crowd), "lodge", "s", time.Since(begun).Seconds()))
	time.Sleep(settle)
	all, err := s.usage(ctx)
	if err != nil {
		return err
	}
	sum := 0.0
	for _, u := range all {
		sum += float64(u.MemoryBytes-u.MemoryCacheBytes) / (1 << 20)
	}
	b.report.add(single(group, fmt.Sprintf("memory of an idle Debian guest, as charged to its group, %d at once", crowd), "lodge", "MB", sum/float64(len(all))).atMost(50),
		single(group, "the same, as the host has less available", "lodge", "MB", (before-memory()["MemAvailable"])/mb/crowd))
	args := []string{"rm", "--force"}
	for i := rest; i < crowd; i++ {
		args = append(args, fmt.Sprintf("c-%d", i+1))
	}
	if _, err := s.lodge(ctx, args...); err != nil {
		return err
	}
	time.Sleep(settle)
	used := func() (sum float64, err error) {
		all, err := s.usage(ctx)
		for _, u := range all {
			sum += u.CPUSeconds
		}
		return sum, err
	}
	from, err := used()
	if err != nil {
		return err
	}
	time.Sleep(idleTime)
	to, err := used()
	if err != nil {
		return err
	}
	b.report.add(single(group, fmt.Sprintf("%d idle guests, of one core", rest), "lodge", "%", 100*(to-from)/idleTime.Seconds()).atMost(2))
	return nil
}
