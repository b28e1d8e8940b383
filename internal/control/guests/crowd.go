package guests

import (
	"path/filepath"
	"time"

	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// Guests that boot a kernel of their own keep a processor busy, and many at
// once take longer than the same ones after each other: each pushes the others
// out of the processors' caches. So a host boots a few at a time, and who waits
// looks again after a moment.
const (
	bootsPerCPU = 2
	bootPlace   = 30 * time.Second      // that a guest keeps a place for which never says it is ready
	lookApart   = 10 * time.Millisecond // between the looks of two that wait
	lookOften   = 100 * time.Millisecond
)

// crowd is who boots, from when it was about to start, and who waits for that,
// from when it last looked.
type crowd struct{ boots, waits map[string]time.Time }

// place gives the guest a place among those that boot from now on, or says how
// long to wait before it looks again. status tells of a guest that is there.
func (c *crowd) place(id string, most int, now time.Time, status func(id string) (guest.Status, bool)) time.Duration {
	for other, since := range c.boots {
		if s, there := status(other); !there || !boots(s, since, now) {
			delete(c.boots, other)
		}
	}
	for other, looked := range c.waits {
		if now.Sub(looked) > bootPlace { // it is not wanted any more
			delete(c.waits, other)
		}
	}
	if _, has := c.boots[id]; !has && len(c.boots) >= most {
		c.waits[id] = now
		return max(lookOften, lookApart*time.Duration(len(c.waits)))
	}
	delete(c.waits, id)
	c.boots[id] = now
	return 0
}

// boots is whether a guest that was about to start at since may still be at it.
func boots(s guest.Status, since, now time.Time) bool {
	if now.Sub(since) > bootPlace {
		return false
	}
	if s.Started == nil || s.Started.Before(since) {
		return true // its status is that of before
	}
	return wasUp(s) && !s.Ready
}

// crowded is how long the guest has to wait until there may be a place for it
// among those that boot; 0: it has one.
func (r *Reconciler) crowded(g guest.Guest, info engine.Info) time.Duration {
	if info.Form == guest.Tree || g.Status.Saved {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.attached[g.ID].parts; p != nil && (p.Memory != "" || exists(filepath.Join(p.Root.Writable, memoryDir))) {
		return 0 // it does not boot, but goes on from a memory image
	}
	return r.crowd.place(g.ID, bootsPerCPU*max(1, len(r.CPUs)), r.Now(), func(id string) (guest.Status, bool) {
		rec, err := r.Tables.Guests.ByID(id)
		return rec.Status, err == nil
	})
}

// notBooting gives up the guest's place, as it did not start.
func (r *Reconciler) notBooting(g guest.Guest) {
	r.mu.Lock()
	delete(r.crowd.boots, g.ID)
	r.mu.Unlock()
}
