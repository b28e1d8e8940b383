package guest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"lodge/api"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

// sampleGap is the time between the two readings that a rate is made of, when
// only one answer is wanted.
const sampleGap = 500 * time.Millisecond

// load is what a guest uses, with rates made of two readings.
type load struct {
	api.Usage
	CPUPercent float64 `json:"cpu_percent"` // 100 is one processor
	RxRate     float64 `json:"rx_bytes_per_second"`
	TxRate     float64 `json:"tx_bytes_per_second"`
	ReadRate   float64 `json:"read_bytes_per_second"`
	WriteRate  float64 `json:"write_bytes_per_second"`
}

// loads compares two readings. A guest that was not in the first, or that was
// started anew in between, has no rates yet.
func loads(before, now []api.Usage) []load {
	old := make(map[string]api.Usage, len(before))
	for _, u := range before {
		old[u.Name] = u
	}
	list := make([]load, 0, len(now))
	for _, u := range now {
		l := load{Usage: u}
		b, ok := old[u.Name]
		seconds := u.At.Sub(b.At).Seconds()
		if ok && seconds > 0 && u.CPUSeconds >= b.CPUSeconds {
			l.CPUPercent = 100 * (u.CPUSeconds - b.CPUSeconds) / seconds
			l.RxRate = rate(b.RxBytes, u.RxBytes, seconds)
			l.TxRate = rate(b.TxBytes, u.TxBytes, seconds)
			l.ReadRate = rate(b.ReadBytes, u.ReadBytes, seconds)
			l.WriteRate = rate(b.WriteBytes, u.WriteBytes, seconds)
		}
		list = append(list, l)
	}
	return list
}

func rate(before, now uint64, seconds float64) float64 {
	if now < before {
		return 0
	}
	return float64(now-before) / seconds
}

// order is what loads are sorted by.
type order struct {
	key     byte
	reverse bool
}

// sortKeys are the keys of top, and what they mean.
const sortKeys = "c cpu  m memory  n name  t net  d disk  p processes  r reverse  q quit"

// sortLoads puts the largest first, but names from A.
func sortLoads(list []load, o order) {
	slices.SortStableFunc(list, func(a, b load) int {
		n := 0
		switch o.key {
		case 'c':
			n = cmp.Compare(b.CPUPercent, a.CPUPercent)
		case 'm':
			n = cmp.Compare(b.MemoryBytes, a.MemoryBytes)
		case 't':
			n = cmp.Compare(b.RxRate+b.TxRate, a.RxRate+a.TxRate)
		case 'd':
			n = cmp.Compare(b.ReadRate+b.WriteRate, a.ReadRate+a.WriteRate)
		case 'p':
			n = cmp.Compare(b.Processes, a.Processes)
		}
		if n == 0 {
			n = strings.Compare(a.Name, b.Name)
		}
		if o.reverse {
			return -n
		}
		return n
	})
}

// loadTable is what top and stats show.
func loadTable(list []load) *cli.Table {
	t := &cli.Table{Header: []string{"NAME", "CPU%", "MEMORY", "LIMIT", "MEM%", "NET-IN/s", "NET-OUT/s", "READ/s", "WRITE/s", "DISK", "PIDS"}}
	for _, l := range list {
		part := "-"
		if l.MemoryLimitBytes > 0 {
			part = fmt.Sprintf("%.1f", 100*float64(l.MemoryBytes)/float64(l.MemoryLimitBytes))
		}
		t.Row(l.Name, fmt.Sprintf("%.1f", l.CPUPercent), units.Bytes(l.MemoryBytes), memory(l.MemoryLimitBytes), part,
			units.Bytes(uint64(l.RxRate)), units.Bytes(uint64(l.TxRate)), units.Bytes(uint64(l.ReadRate)), units.Bytes(uint64(l.WriteRate)),
			units.Bytes(l.DiskBytes), fmt.Sprint(l.Processes))
	}
	return t
}
