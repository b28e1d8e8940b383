package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"lodge/api"
	"lodge/internal/fabric"
)

const (
	settle   = 5 * time.Second  // until what was started does no more
	idleTime = 15 * time.Second // over which idle processors are watched
	mb       = 1e6 / 1024       // KiB in the MB of the promise
	bridgeUp = 1023             // ports that Linux gives one bridge (BR_MAX_PORTS - 1)
)

// density fills a host with small guests, each on the network.
func (b *bench) density(ctx context.Context) error {
	s, err := b.startServer(ctx, "density")
	if err != nil {
		return err
	}
	defer s.stop()
	if _, err := s.lodge(ctx, "launch", "busybox", "warm"); err != nil {
		return err
	}
	if _, err := s.lodge(ctx, "rm", "--force", "warm"); err != nil {
		return err
	}
	time.Sleep(settle)
	before, err := s.weigh()
	if err != nil {
		return err
	}
	b.say("launching %d guests", b.guests)
	begun := time.Now()
	if _, err := s.lodge(ctx, "launch", "busybox", "g", "--count", fmt.Sprint(b.guests)); err != nil {
		return err
	}
	took := time.Since(begun)
	up, err := s.running(ctx)
	if err != nil {
		return err
	}
	if len(up) != b.guests {
		return fmt.Errorf("%d of %d guests run", len(up), b.guests)
	}
	row := single("density", fmt.Sprintf("launch --count %d, all up with network", b.guests), "lodge", "s", took.Seconds())
	b.report.add(row.atMost(25 * float64(b.guests) / 1000))
	time.Sleep(settle)
	after, err := s.weigh()
	if err != nil {
		return err
	}
	b.reportWeight(before, after)
	if err := b.idle(ctx, s); err != nil {
		return err
	}
	if err := b.busyHost(ctx, s); err != nil {
		return err
	}
	if err := b.manyPorts(ctx, s, len(up)); err != nil {
		return err
	}
	return b.removeAll(ctx, s)
}

// weight is what the host spends, in KiB, and on how many processes.
type weight struct {
	slab, fixed, percpu, stacks, tables float64
	lodged, keeper                      float64
	processes                           int
}

// weigh reads what the kernel says it spends. It cannot be asked for whom, so
// what else goes on at the host is in it.
func (s *server) weigh() (weight, error) {
	pid, err := s.keeper()
	if err != nil {
		return weight{}, err
	}
	m := memory()
	return weight{
		slab: m["Slab"], fixed: m["SUnreclaim"], percpu: m["Percpu"], stacks: m["KernelStack"], tables: m["PageTables"],
		lodged: resident(s.service.cmd.Process.Pid), keeper: resident(pid), processes: len(processes(func([]string) bool { return true })),
	}, nil
}

// resident is a process's memory, in KiB.
func resident(pid int) float64 { return keyed(fmt.Sprintf("/proc/%d/status", pid))["VmRSS"] }

func (b *bench) reportWeight(before, after weight) {
	n := float64(b.guests)
	row := func(what string, from, to float64) Row {
		return single("density", "memory each: "+what, "lodge", "KiB", (to-from)/n)
	}
	parts := []Row{
		row("slab that cannot be reclaimed", before.fixed, after.fixed),
		row("per-cpu", before.percpu, after.percpu),
		row("kernel stacks", before.stacks, after.stacks),
		row("page tables", before.tables, after.tables),
		row("lodged and keeper", before.lodged+before.keeper, after.lodged+after.keeper),
	}
	total := 0.0
	for _, p := range parts {
		total += p.Median
	}
	sum := single("density", "memory each", "lodge", "MB", total/mb)
	sum.Note = "sum of the following five"
	b.report.add(sum.atMost(0.9))
	b.report.add(parts...)
	b.report.add(row("slab that can be reclaimed (not in the sum)", before.slab-before.fixed, after.slab-after.fixed))
	own := single("density", "processes each, those of the guest included", "lodge", "", float64(after.processes-before.processes)/n)
	own.Note = "busybox's init and its shell on the console"
	b.report.add(own)
	b.report.add(single("density", "lodged, resident", "lodge", "MB", after.lodged/mb).atMost(100), single("density", "keeper, resident", "lodge", "MB", after.keeper/mb))
}

// idle watches what lodged and the keeper burn while nothing happens.
func (b *bench) idle(ctx context.Context, s *server) error {
	pid, err := s.keeper()
	if err != nil {
		return err
	}
	used := func() (time.Duration, error) {
		a, err := processorTime(s.service.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		k, err := processorTime(pid)
		return a + k, err
	}
	before, err := used()
	if err != nil {
		return err
	}
	select {
	case <-time.After(idleTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := used()
	if err != nil {
		return err
	}
	b.report.add(single("density", "idle lodged and keeper, of one core", "lodge", "%", 100*(after-before).Seconds()/idleTime.Seconds()).atMost(3))
	return nil
}

// busyHost walks one more guest through its life beside all the others.
func (b *bench) busyHost(ctx context.Context, s *server) error {
	t := s.tool()
	for i := range max(b.rounds/3, 1) {
		name := fmt.Sprintf("more-%d", i)
		for _, step := range steps() {
			if err := t.time(ctx, step.what, true, step.args(t)(name)...); err != nil {
				return err
			}
		}
		if err := t.time(ctx, "ls", true, "ls"); err != nil {
			return err
		}
	}
	for _, step := range append(steps(), step{what: "ls"}) {
		b.report.add(timed("density", fmt.Sprintf("%s beside %d guests", step.what, b.guests), "lodge", *t.figures[step.what]))
	}
	return nil
}

// manyPorts has more guests on one network than one bridge has ports.
func (b *bench) manyPorts(ctx context.Context, s *server, up int) error {
	if b.ports <= up {
		b.report.skip("more than %d guests on one network", bridgeUp)
		return nil
	}
	if _, err := s.lodge(ctx, "launch", "busybox", "p", "--count", fmt.Sprint(b.ports-up)); err != nil {
		return fmt.Errorf("guests on one network beyond %d: %w", up, err)
	}
	all, err := s.running(ctx)
	if err != nil {
		return err
	}
	row := single("density", fmt.Sprintf("guests on one network (one bridge has %d ports)", bridgeUp), "lodge", "", float64(len(all)))
	met := len(all) == b.ports
	row.Promise, row.Met = fmt.Sprintf(">= %d", b.ports), &met
	first, last := all[0], all[len(all)-1]
	if len(first.Addresses) > 0 {
		if _, err := s.lodge(ctx, "exec", last.Name, "--", "ping", "-c", "1", "-W", "5", first.Addresses[0]); err != nil {
			met = false
			row.Note = "the last does not reach the first: " + firstLine(err.Error())
		} else {
			row.Note = "the last reaches the first"
		}
	}
	b.report.add(row)
	return nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// running lists the guests that are up.
func (s *server) running(ctx context.Context) (up []api.Guest, err error) {
	text, err := s.lodge(ctx, "ls", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all []api.Guest
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, err
	}
	for _, g := range all {
		if g.Phase == "running" {
			up = append(up, g)
		}
	}
	return up, nil
}

func (b *bench) removeAll(ctx context.Context, s *server) error {
	all, err := s.running(ctx)
	if err != nil {
		return err
	}
	args := []string{"rm", "--force"}
	for _, g := range all {
		args = append(args, g.Name)
	}
	begun := time.Now()
	if _, err := s.lodge(ctx, args...); err != nil {
		return err
	}
	took := time.Since(begun)
	b.report.add(single("density", fmt.Sprintf("rm --force of %d", len(all)), "lodge", "s", took.Seconds()))
	if left, err := os.ReadDir("/sys/class/net"); err == nil {
		n := 0
		for _, d := range left {
			if strings.HasPrefix(d.Name(), fabric.Cards("lb")) {
				n++
			}
		}
		row := single("density", "network cards left behind", "lodge", "", float64(n))
		b.report.add(row.atMost(0))
	}
	return nil
}
