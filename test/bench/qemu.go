package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"lodge/api"
	"lodge/internal/base/zram"
)

// machines measures virtual machines: cold, from templates, copied, saved.
func (b *bench) machines(ctx context.Context) error {
	const group, who = "vm", "lodge"
	s, err := b.startModels(ctx, group, "linux/debian-12")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := b.probe(ctx, s); err != nil {
		return err
	}
	if err := s.anew(ctx, "--template-memory", "0"); err != nil {
		return err
	}
	cold, err := b.machineBoots(ctx, s)
	if err != nil {
		return err
	}
	if err := s.anew(ctx, "--standby-memory", "0"); err != nil {
		return err
	}
	if err := b.templates(ctx, s, cold); err != nil {
		return err
	}
	if err := s.anew(ctx); err != nil {
		return err
	}
	if err := b.standbys(ctx, s, cold); err != nil {
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
func (b *bench) probe(ctx context.Context, s *server) error {
	var took Samples
	said := ""
	for range 5 {
		begun := time.Now()
		text, err := command(ctx, nil, filepath.Join(s.dir, "run/bin/lodge-keeper"), "-kvm-probe")
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

// coldBoots is how many cold boots are timed. One takes 20 to 30 s, and from one to
// the next it differs by a fifth.
const coldBoots = 5

// machineBoots boots a guest cold, and by turns QEMU by hand with the same kernel
// and image: without the kernel's modules, as the promise was made, and with
// them, as Lodge's guests and any Debian have them.
func (b *bench) machineBoots(ctx context.Context, s *server) (cold Samples, err error) {
	var own, starts, first Samples
	var bare, full handBoots
	h, err := b.newByHand(ctx, s)
	if err != nil {
		return nil, err
	}
	for range coldBoots {
		var exec time.Duration
		runs, took, err := s.timeLaunch(ctx, func(ctx context.Context, name string) error {
			if err := s.ready(ctx, name); err != nil {
				return err
			}
			began := time.Now()
			_, err := s.lodge(ctx, "exec", name, "--", "true")
			exec = time.Since(began)
			return err
		}, warmGuest...)
		if err != nil {
			return nil, err
		}
		own.add(took - exec)
		first.add(exec)
		starts.add(runs)
		if err := h.boot(ctx, false, &bare); err != nil {
			return nil, err
		}
		if err := h.boot(ctx, true, &full); err != nil {
			return nil, err
		}
	}
	b.reportBoots(own, starts, first, bare, full)
	return own, nil
}

// reportBoots adds the rows of cold boots, Lodge's and by hand: bare without the
// kernel's modules, full with them.
func (b *bench) reportBoots(own, starts, first Samples, bare, full handBoots) {
	const (
		what    = "cold launch of Debian with systemd, to ready"
		program = "exec true over a line that is open"
		byBare  = "QEMU by hand, q35"
		byFull  = "QEMU by hand, q35, with modules"
	)
	plain := timed("vm", what, byBare, bare.ready)
	plain.Note = "same kernel, initramfs, image and processor; no modules, record, network, jail"
	modules := timed("vm", what, byFull, full.ready)
	modules.Note = "the same, and the kernel's modules, which Lodge's guests have"
	b.report.add(timed("vm", what, "lodge", own).beside(plain).withinRatio(1), plain,
		timed("vm", what, "lodge", own).beside(modules), modules,
		timed("vm", "launch until QEMU runs, the whole command", "lodge", starts).atMost(50),
		timed("vm", "exec true, the first of a guest that has just booted", "lodge", first).atMost(45),
		timed("vm", program+", the first", byBare, bare.first), timed("vm", program+", later", byBare, bare.later),
		timed("vm", program+", the first", byFull, full.first), timed("vm", program+", later", byFull, full.later))
}

// warmGuest is the guest that templates are measured with. It has the memory and
// the one processor that the promises were made for.
var warmGuest = []string{"debian/12", "--model", "vm", "--memory", "256MiB", "--cpus", "1"}

// templates launches guests from the memory of one that was booted before.
func (b *bench) templates(ctx context.Context, s *server, cold Samples) error {
	if _, _, err := s.timeLaunch(ctx, s.ready, warmGuest...); err != nil { // which has the template made
		return err
	}
	if err := s.says(ctx, "templates", "1, "); err != nil {
		return err
	}
	var warm Samples
	for range 10 {
		_, took, err := s.timeLaunch(ctx, s.answers, warmGuest...)
		if err != nil {
			return err
		}
		warm.add(took)
	}
	base := timed("vm", "launch", "lodge, cold", cold)
	row := timed("vm", "launch from a template, none standing ready, to an answered exec", "lodge", warm).beside(base)
	row.Note = "--standby-memory 0"
	b.report.add(row)
	return nil
}

// standbys launches guests of which one stands ready each time, as lodge is
// shipped.
func (b *bench) standbys(ctx context.Context, s *server, cold Samples) error {
	if _, _, err := s.timeLaunch(ctx, s.answers, warmGuest...); err != nil { // which makes one wanted
		return err
	}
	var runs, warm, first Samples
	for range 10 {
		if err := s.says(ctx, "standing ready", "1 guest"); err != nil {
			return err
		}
		launched, took, err := s.timeLaunch(ctx, func(ctx context.Context, name string) error {
			asked := time.Now()
			err := s.answers(ctx, name)
			first.add(time.Since(asked))
			return err
		}, warmGuest...)
		if err != nil {
			return err
		}
		runs.add(launched)
		warm.add(took)
	}
	base := timed("vm", "launch", "lodge, cold", cold)
	b.report.add(timed("vm", "launch of a kind that was launched before, the command", "lodge", runs),
		timed("vm", "the same, to an answered exec", "lodge", warm).atMost(500),
		timed("vm", "the same beside a cold launch", "lodge", warm).beside(base).withinRatio(1.0/25),
		timed("vm", "exec true, the first of such a guest, the whole command", "lodge", first).atMost(45))
	return nil
}

// says waits until the engine of virtual machines says a fact that begins so.
func (s *server) says(ctx context.Context, name, value string) error {
	return until(ctx, name+" is "+value, bootLimit, func() error {
		var e api.Engine
		text, err := s.lodge(ctx, "engine", "show", "qemu", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(text), &e)
		}
		if err != nil {
			return err
		}
		for _, f := range e.Facts {
			if f.Name == name && strings.HasPrefix(f.Value, value) {
				return nil
			}
		}
		return fmt.Errorf("it says %+v", e.Facts)
	})
}

// machineExecs measures exec in a machine that has run programs before.
func (b *bench) machineExecs(ctx context.Context, s *server) error {
	for _, g := range []struct{ name, model string }{{"p", "vm"}, {"o", "os"}} {
		if _, err := s.lodge(ctx, "launch", "debian/12", g.name, "--model", g.model, "--memory", "256MiB", "--cpus", "1"); err != nil {
			return err
		}
		if err := s.ready(ctx, g.name); err != nil {
			return err
		}
	}
	if err := s.says(ctx, "standing ready", "1 guest"); err != nil { // the next one is made ready beside it
		return err
	}
	time.Sleep(settle)
	return b.execs(ctx, s, "vm", 15)
}

// memorySnapshots takes and restores snapshots with 256 MiB of memory.
func (b *bench) memorySnapshots(ctx context.Context, s *server) error {
	var save, runs, restore Samples
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
		runs.add(time.Since(begun))
		if err := s.answers(ctx, "p"); err != nil {
			return err
		}
		restore.add(time.Since(begun))
	}
	b.report.add(timed("vm", "snapshot with memory, 256 MiB", "lodge", save).atMost(500),
		timed("vm", "a running guest goes back to it, the whole command", "lodge", runs).atMost(500),
		timed("vm", "a running guest goes back to it: its end, restore, answered exec", "lodge", restore))
	return nil
}

// clones measures copies: of a running guest, one by one and many of one moment,
// and of a template.
func (b *bench) clones(ctx context.Context, s *server) error {
	const n = 10
	var each Samples
	for i := range 5 {
		name := fmt.Sprintf("c%d", i)
		begun := time.Now()
		if _, err := s.lodge(ctx, "clone", "p", name, "--running"); err != nil {
			return err
		}
		if err := s.answers(ctx, name); err != nil {
			return err
		}
		each.add(time.Since(begun))
		if _, err := s.lodge(ctx, "rm", "--force", name); err != nil {
			return err
		}
	}
	b.report.add(timed("vm", "copy of a running guest, to an answered exec", "lodge", each))
	if err := b.copiesMemory(ctx, s, "copies of one moment of a running guest", n, "clone", "p", "k", "--running", "--count", fmt.Sprint(n)); err != nil {
		return err
	}
	return b.copiesMemory(ctx, s, "copies of a template", n, "launch", "debian/12", "w", "--model", "vm", "--memory", "256MiB", "--cpus", "1", "--count", fmt.Sprint(n))
}

// idleAfter is how long an idle guest is left until its memory was paged out.
const idleAfter = 75 * time.Second

// copiesMemory measures what memory idle copies take that one command makes,
// whose third word is what they are called, early and when they are idle, and
// removes them.
func (b *bench) copiesMemory(ctx context.Context, s *server, what string, n int, make ...string) error {
	names := copyNames(make[2], n)
	begun := time.Now()
	if _, err := s.lodge(ctx, make...); err != nil {
		return err
	}
	var all Samples
	for _, name := range names {
		if err := s.answers(ctx, name); err != nil {
			return err
		}
	}
	all.add(time.Since(begun))
	time.Sleep(settle)
	early, err := s.memoryOf(ctx, names)
	if err != nil {
		return err
	}
	time.Sleep(idleAfter)
	late, err := s.memoryOf(ctx, names)
	if err != nil {
		return err
	}
	var wake Samples
	for _, name := range names {
		begun := time.Now()
		if err := s.answers(ctx, name); err != nil {
			return err
		}
		wake.add(time.Since(begun))
	}
	b.report.add(timed("vm", fmt.Sprintf("%d %s, until all have answered an exec", n, what), "lodge", all),
		single("vm", fmt.Sprintf("memory of one of %d %s, 5 s after that (PSS)", n, what), "lodge", "MB", early.here),
		single("vm", fmt.Sprintf("memory of an idle one of %d %s (PSS)", n, what), "lodge", "MB", late.here).atMost(50),
		single("vm", "the same, with its part of the host's compressed memory", "lodge", "MB", late.here+late.compressed),
		timed("vm", "exec true, the first of a guest whose memory is compressed", "lodge", wake))
	_, err = s.lodge(ctx, append([]string{"rm", "--force"}, names...)...)
	return err
}

// taken is memory, in MB.
type taken struct{ here, compressed float64 }

// memoryOf is what guests take, each of them on average.
func (s *server) memoryOf(ctx context.Context, names []string) (m taken, err error) {
	swap, err := zram.Find()
	if err != nil {
		return m, err
	}
	defer swap.Close()
	u, err := swap.Usage()
	if err != nil {
		return m, err
	}
	for _, name := range names {
		g, err := s.guest(ctx, name)
		if err != nil {
			return m, err
		}
		here, swapped := proportional(g.Pid)
		m.here += here / float64(len(names))
		if u.Pages > 0 {
			m.compressed += swapped * float64(u.Memory) / float64(u.Pages) / float64(len(names))
		}
	}
	return m, nil
}

// copyNames are what n guests are called that one command makes.
func copyNames(name string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("%s-%d", name, i+1))
	}
	return all
}
