package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Samples are repeated measurements of one thing, in milliseconds.
type Samples []float64

func (s *Samples) add(d time.Duration) { *s = append(*s, float64(d.Nanoseconds())/1e6) }

// quantile returns the value that the share q of all samples does not exceed;
// 0 is the least. Without samples it is 0.
func (s Samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (s Samples) least() float64  { return s.quantile(0) }
func (s Samples) median() float64 { return s.quantile(0.5) }

// Row is one line of the report: what somebody measured of one subject.
type Row struct {
	Group   string  `json:"group"`     // "start", "commands", "density"
	What    string  `json:"what"`      // "launch"
	Who     string  `json:"who"`       // "lodge", "lxd", "floor"
	N       int     `json:"n"`         // measurements
	Unit    string  `json:"unit"`      // "ms", "MB", "%"
	Min     float64 `json:"min"`       // of the measurements
	Median  float64 `json:"median"`    // of the measurements
	Ratio   float64 `json:"ratio"`     // of medians, to Against; 0: there is nothing to compare with
	RatioOf float64 `json:"ratio_min"` // of minima, to Against
	Against string  `json:"against,omitempty"`
	Promise string  `json:"promise,omitempty"` // "p50 <= 40 ms"
	Met     *bool   `json:"met,omitempty"`     // whether the promise was kept in this run
	Failed  int     `json:"failed,omitempty"`  // attempts that did not work and are not among N
	Note    string  `json:"note,omitempty"`
}

// Report is everything that one run found out.
type Report struct {
	At      time.Time `json:"at"`
	Machine Machine   `json:"machine"`
	Rows    []Row     `json:"rows"`
	Skipped []string  `json:"skipped,omitempty"` // what could not be measured, and why
}

// Machine is what the figures depend on besides the programs.
type Machine struct {
	CPU        string `json:"cpu"`
	CPUs       int    `json:"cpus"`
	MemoryMB   int    `json:"memory_mb"`
	Kernel     string `json:"kernel"`
	LoadBefore string `json:"load_before"` // /proc/loadavg
	LoadAfter  string `json:"load_after"`
}

// timed makes the row of samples.
func timed(group, what, who string, s Samples) Row {
	return Row{Group: group, What: what, Who: who, N: len(s), Unit: "ms", Min: s.least(), Median: s.median()}
}

// single makes the row of one measurement.
func single(group, what, who, unit string, value float64) Row {
	return Row{Group: group, What: what, Who: who, N: 1, Unit: unit, Min: value, Median: value}
}

// beside adds how r compares with other.
func (r Row) beside(other Row) Row {
	if other.Median > 0 && other.Min > 0 {
		r.Ratio, r.RatioOf, r.Against = r.Median/other.Median, r.Min/other.Min, other.Who
	}
	return r
}

// atMost adds a promise about the median.
func (r Row) atMost(limit float64) Row {
	met := r.N > 0 && r.Median <= limit
	r.Promise, r.Met = fmt.Sprintf("<= %g %s", limit, r.Unit), &met
	return r
}

// withinRatio adds a promise about the ratio to what r was compared with.
func (r Row) withinRatio(limit float64) Row {
	met := r.Ratio > 0 && r.Ratio <= limit
	r.Promise, r.Met = fmt.Sprintf("<= %g x %s", limit, r.Against), &met
	return r
}

func (r *Report) add(rows ...Row) { r.Rows = append(r.Rows, rows...) }

func (r *Report) skip(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	r.Skipped = append(r.Skipped, why)
	fmt.Fprintln(os.Stderr, "bench: skipped:", why)
}

// print writes the report as a table for people.
func (r *Report) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s, %d x %s, %d MB, Linux %s; load %s before, %s after\n\n",
		r.At.Format(time.DateTime), r.Machine.CPUs, r.Machine.CPU, r.Machine.MemoryMB, r.Machine.Kernel, r.Machine.LoadBefore, r.Machine.LoadAfter)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tWHO\tN\tMIN\tMEDIAN\tUNIT\tX MIN\tX MEDIAN\tOF\tPROMISE\tKEPT\tNOTE")
	for _, row := range r.Rows {
		fmt.Fprintln(w, strings.Join(row.cells(), "\t"))
	}
	w.Flush()
	for _, why := range r.Skipped {
		fmt.Fprintln(out, "not measured:", why)
	}
}

func (r Row) cells() []string {
	cells := []string{r.Group + " " + r.What, r.Who, fmt.Sprint(r.N), fmt.Sprintf("%.2f", r.Min), fmt.Sprintf("%.2f", r.Median), r.Unit, "", "", r.Against, r.Promise, "", r.Note}
	if r.Ratio > 0 {
		cells[6], cells[7] = fmt.Sprintf("%.2f", r.RatioOf), fmt.Sprintf("%.2f", r.Ratio)
	}
	if r.Met != nil {
		cells[10] = map[bool]string{true: "yes", false: "NO"}[*r.Met]
	}
	if r.Failed > 0 {
		cells[11] = strings.TrimSpace(fmt.Sprintf("%d failed; %s", r.Failed, r.Note))
	}
	return cells
}

// save writes the report for programs.
func (r *Report) save(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench.json"), append(text, '\n'), 0o644)
}
