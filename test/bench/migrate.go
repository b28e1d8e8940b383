package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// moveLimit is how long all moves may take.
const moveLimit = 30 * time.Minute

// moves measures how long a guest stands still that goes from one QEMU of this
// host to another, in all ways. No command does that yet, so it is a benchmark
// of the engine itself.
func (b *bench) moves(ctx context.Context) error {
	rounds := max(3, min(b.rounds, 10))
	program, err := filepath.Abs(filepath.Join(b.parts, "qemu.test"))
	if err != nil {
		return err
	}
	text, err := within(ctx, moveLimit, nil, "env", "-C", "internal/engine/qemu", program,
		"-test.run=^$", "-test.bench=^BenchmarkMigrate$", fmt.Sprintf("-test.benchtime=%dx", rounds), "-test.timeout="+moveLimit.String())
	if err != nil {
		return err
	}
	figures := metrics(text)
	if len(figures) == 0 {
		return errors.New("nothing was measured: " + firstLine(text))
	}
	for _, kind := range []string{"shared", "mirrored", "post-copy"} {
		for _, f := range []struct{ name, what, note string }{
			{"paused", "move, " + kind + ": the guest stands still", "from the sender's STOP to the receiver's RESUME, by QEMU's clocks"},
			{"counted", "move, " + kind + ": downtime as QEMU counts it", "of the sender's end alone"},
			{"total", "move, " + kind + ": all of it", ""},
		} {
			r := Row{Group: "migrate", What: f.what, Who: "lodge", N: rounds, Unit: "ms", Note: f.note,
				Min: figures[kind+"-"+f.name+"-min-ms"], Median: figures[kind+"-"+f.name+"-median-ms"]}
			b.report.add(r)
		}
	}
	return nil
}

// metrics reads what a Go benchmark reports: numbers, each before its unit.
func metrics(text string) map[string]float64 {
	found := map[string]float64{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(f); i += 2 {
			if n, err := strconv.ParseFloat(f[i], 64); err == nil {
				found[f[i+1]] = n
			}
		}
	}
	return found
}
