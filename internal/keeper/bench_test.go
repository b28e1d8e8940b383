package keeper_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/keeper"
)

// BenchmarkThousand keeps a thousand programs with consoles: what starting one
// takes, what the keeper weighs and burns while they rest, and how soon an end
// is told.
func BenchmarkThousand(b *testing.B) {
	const n = 1000
	for b.Loop() {
		h := newHouse(b)
		idle := rss(b, h.pid())
		var starts, ends []time.Duration
		for i := range n {
			begin := time.Now()
			h.start(fmt.Sprintf("p%d", i), keeper.Program{Argv: []string{"/bin/sleep", "100000"}, Console: true})
			starts = append(starts, time.Since(begin))
		}
		time.Sleep(3 * time.Second) // lets the runtime come to rest
		before := ticks(b, h.pid())
		time.Sleep(10 * time.Second)
		b.ReportMetric(float64(ticks(b, h.pid())-before)/100/10*100, "idle-cpu-%")
		b.ReportMetric(float64(rss(b, h.pid()))/(1<<20), "rss-MiB")
		b.ReportMetric(float64(idle)/(1<<20), "rss-empty-MiB")
		told := h.Exits(h.ctx())
		for i := range 200 {
			held, err := h.Find(fmt.Sprintf("p%d", i))
			if err != nil {
				b.Fatal(err)
			}
			if err := held.Signal(h.ctx(), syscall.SIGKILL); err != nil {
				b.Fatal(err)
			}
			s := <-told
			ends = append(ends, time.Since(s.Exit.At)) // from when the keeper saw it
		}
		slices.Sort(starts)
		slices.Sort(ends)
		b.ReportMetric(ms(starts[n/2]), "start-p50-ms")
		b.ReportMetric(ms(starts[n*99/100]), "start-p99-ms")
		b.ReportMetric(ms(starts[0]), "start-min-ms")
		b.ReportMetric(ms(ends[100]), "exit-p50-ms")
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ticks returns the processor time that a process used, in hundredths of a
// second.
func ticks(tb testing.TB, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return user + system
}
