package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"lodge/api"
)

// The kernel of Debian 12's own package, which Lodge's choice is compared with.
// It cannot run programs on processors whose registers are larger than it
// knows, such as those with AMX.
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

// paravirtBoots boots guests as shipped beside, where it runs at all, the
// packaged kernel, by turns.
func (b *bench) paravirtBoots(ctx context.Context, s *server) error {
	var own, packaged, small Samples
	type way struct {
		to   *Samples
		args []string
	}
	plain := []string{"debian/12", "--model", "paravirt", "--memory", "256MiB"}
	ways := []way{{&own, plain}}
	old := append(slices.Clone(plain), "--kernel", packagedKernel)
	if _, _, err := s.timeLaunch(ctx, s.up, old...); err != nil {
		b.report.skip("the packaged kernel 6.1 does not run on this processor: %s", firstLine(err.Error()))
	} else {
		ways = append(ways, way{&packaged, old})
	}
	for range 3 {
		for _, way := range ways {
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
	mine := timed("paravirt", what, "lodge", own)
	if len(packaged) > 0 {
		other := timed("paravirt", what, "packaged 6.1", packaged)
		b.report.add(mine.beside(other).withinRatio(1.0/3), other)
	} else {
		b.report.add(mine)
	}
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

// crowdReady waits until so many guests are ready. It asks seldom, and for all
// at once, because what asks takes its time from them.
func (s *server) crowdReady(ctx context.Context, n int) error {
	return until(ctx, fmt.Sprintf("%d guests are ready", n), crowdLimit, func() error {
		text, err := s.lodge(ctx, "ls", "-o", "json")
		if err != nil {
			return err
		}
		var all []api.Guest
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return err
		}
		ready := 0
		for _, g := range all {
			if g.Ready {
				ready++
			}
		}
		if ready == n {
			return nil
		}
		time.Sleep(crowdLook)
		return fmt.Errorf("%d are", ready)
	})
}

// How long many guests may take to be ready, how often they are looked at, and
// how long they are left alone then.
const (
	crowdLimit = 15 * time.Minute
	crowdLook  = time.Second
	crowdRest  = 30 * time.Second // until they have given back what they needed to boot
)

// paravirtCrowd has 40 guests at once, and 20 of them idle.
func (b *bench) paravirtCrowd(ctx context.Context, s *server) error {
	const group, crowd, rest = "paravirt", 40, 20
	before := memory()["MemAvailable"]
	begun := time.Now()
	if _, err := s.lodge(ctx, "launch", "debian/12", "c", "--count", fmt.Sprint(crowd), "--model", "paravirt", "--memory", "128MiB"); err != nil {
		return err
	}
	if err := s.crowdReady(ctx, crowd); err != nil {
		return err
	}
	b.report.add(single(group, fmt.Sprintf("launch of %d Debian guests at once, all ready", crowd), "lodge", "s", time.Since(begun).Seconds()))
	time.Sleep(crowdRest)
	all, err := s.usage(ctx)
	if err != nil {
		return err
	}
	sum := 0.0
	for _, u := range all {
		sum += float64(u.MemoryBytes-u.MemoryCacheBytes) / 1e6
	}
	b.report.add(single(group, fmt.Sprintf("memory of an idle Debian guest, as charged to its group without the host's file cache, %d at once", crowd), "lodge", "MB", sum/float64(len(all))).atMost(50),
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
