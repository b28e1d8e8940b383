package oslevel

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// quantiles adds the least and the middle of many times to a benchmark's
// figures, in milliseconds: on a busy machine the mean says little.
func quantiles(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[0].Microseconds())/1000, name+"-min-ms")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-med-ms")
}

// BenchmarkStart times a guest from nothing to its first instruction's output,
// control group and volume included, and from the kill to nothing again.
func BenchmarkStart(b *testing.B) {
	r := newRig(b)
	var starts, stops, plans, helpers []time.Duration
	for b.Loop() {
		b.StopTimer()
		g, p := r.guest(func(g *guest.Guest, _ *engine.Parts) {
			g.Spec.Command = []string{"sh", "-c", "echo r; exec sleep 1000"}
		})
		// Not prepared after all: that is part of the time.
		must(b, r.tree.Remove(context.Background(), p.Cgroup))
		for _, d := range []string{"upper", "work", ""} {
			must(b, os.Remove(filepath.Join(p.Root.Writable, d)))
		}
		b.StartTimer()
		began := time.Now()
		must(b, os.Mkdir(p.Root.Writable, 0o711))
		must(b, os.Mkdir(p.Root.Writable+"/upper", 0o755))
		must(b, os.Mkdir(p.Root.Writable+"/work", 0o700))
		must(b, r.tree.Create(p.Cgroup, cgroup.Limits{CPUs: 1, Memory: g.Spec.Memory, Processes: 200}))
		planned := time.Now()
		prog, err := r.engine.Program(g, p)
		must(b, err)
		plans = append(plans, time.Since(planned))
		launched := time.Now()
		d, err := keep(prog)
		must(b, err)
		helpers = append(helpers, time.Since(launched))
		for d.output() == "" {
			time.Sleep(20 * time.Microsecond)
		}
		starts = append(starts, time.Since(began))
		began = time.Now()
		d.end()
		must(b, r.tree.Remove(context.Background(), p.Cgroup))
		stops = append(stops, time.Since(began))
	}
	quantiles(b, "start", starts)
	quantiles(b, "plan", plans)
	quantiles(b, "helper", helpers)
	quantiles(b, "stop", stops)
}

func must(b *testing.B, err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

// BenchmarkExec times a program that does nothing, from the call to its end.
func BenchmarkExec(b *testing.B) {
	r := newRig(b)
	_, m := r.sleeper()
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		s, err := m.Exec(context.Background(), session.Request{Argv: []string{"/bin/true"}})
		must(b, err)
		_, err = s.Wait(context.Background())
		must(b, err)
		all = append(all, time.Since(began))
	}
	quantiles(b, "exec", all)
}
