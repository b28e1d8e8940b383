package qemu

import (
	"slices"
	"testing"
	"time"

	"lodge/internal/engine"
)

// BenchmarkMigrate moves a guest that changes its memory and its disk all the
// time from QEMU to QEMU of this host, by turns with a shared disk, with a copied
// one, and by post-copy. Of each it tells for how long the guest stood still, as
// QEMU's clocks of both ends show it and as QEMU counts it (of the sender's end
// alone), and how long all took. test/bench reads what it says.
func BenchmarkMigrate(b *testing.B) {
	r := newRig(b)
	x := newMover(b, r)
	kinds := []struct {
		name string
		how  engine.Moving
	}{{"shared", engine.Moving{}}, {"mirrored", engine.Moving{Mirror: []string{volumeSerial}}}, {"post-copy", engine.Moving{PostCopy: true}}}
	all := map[string][]engine.Moved{}
	for b.Loop() {
		for _, k := range kinds {
			volume := ""
			if len(k.how.Mirror) > 0 {
				volume = x.emptyVolume(b)
			}
			all[k.name] = append(all[k.name], x.move(b, volume, k.how))
			x.whole(b)
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, k := range kinds {
		for name, of := range map[string]func(m engine.Moved) time.Duration{
			"paused":  func(m engine.Moved) time.Duration { return m.Paused },
			"counted": func(m engine.Moved) time.Duration { return m.Downtime },
			"total":   func(m engine.Moved) time.Duration { return m.Total },
		} {
			var took []time.Duration
			for _, m := range all[k.name] {
				took = append(took, of(m))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[0].Microseconds())/1000, k.name+"-"+name+"-min-ms")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, k.name+"-"+name+"-median-ms")
		}
		if k.how.PostCopy && !slices.ContainsFunc(all[k.name], func(m engine.Moved) bool { return m.After > 0 }) {
			b.Error("nothing was sent after the guest had moved")
		}
	}
}
