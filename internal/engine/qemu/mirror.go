package qemu

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qmp"
)

// variables is what moves call the disk with UEFI's variables. No disk of a
// guest's is called so.
const variables = "uefi/" + fdVars

// written lists the disks that the guest writes to.
func (w hardware) written() (names []string) {
	for _, d := range w.Drives {
		if !d.ReadOnly {
			names = append(names, d.Name)
		}
	}
	if strings.HasPrefix(w.Firmware, "uefi") {
		names = append(names, variables)
	}
	return names
}

// writes fails if the guest does not write to a disk.
func (w hardware) writes(name string) error {
	all := w.written()
	if slices.Contains(all, name) {
		return nil
	}
	return errs.Bad("disks", fmt.Sprintf("the guest has no disk %q that it writes to", name), "one of "+strings.Join(all, ", "))
}

// movedNode is the node of the block layer with a disk's content.
func movedNode(name string) string {
	if name == variables {
		return fdVars
	}
	return nodeName(name)
}

// mirror is a disk whose content goes along with its guest.
type mirror struct {
	job  string // of QEMU's
	node string // the copy, at the other end
	name string
	wire *os.File
}

// mirrorPrefix begins the names of all that is made for a move.
const mirrorPrefix = "move-"

func copyNode(i int) string { return fmt.Sprintf("%scopy%d", mirrorPrefix, i) }

// job is a job of QEMU's.
type job struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Done   uint64 `json:"current-progress"`
	Total  uint64 `json:"total-progress"`
	Why    string `json:"error"`
}

func (l *link) jobs(ctx context.Context) (all []job, err error) {
	err = l.do(ctx, "query-jobs", nil, &all)
	return slices.DeleteFunc(all, func(j job) bool { return !strings.HasPrefix(j.ID, mirrorPrefix) }), err
}

// mirrorAll begins to copy the disks that the other program does not share, and
// returns when the copies are what the disks are; from then on each write goes
// to both.
func (s *sender) mirrorAll(ctx context.Context) error {
	if len(s.d.Disks) == 0 {
		return nil
	}
	w, err := s.l.machine(ctx)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(s.d.Disks))
	for name := range s.d.Disks {
		if err := w.writes(name); err != nil {
			return err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		sync := "full"
		if slices.ContainsFunc(w.Drives, func(d drive) bool { return d.Name == name && d.Over }) {
			sync = "top" // what lies below is there already
		}
		x := mirror{job: fmt.Sprintf("%sdisk%d", mirrorPrefix, i), node: copyNode(i), name: name, wire: s.d.Disks[name]}
		s.mirrors = append(s.mirrors, x)
		if err := s.beginMirror(ctx, x, sync); err != nil {
			return err
		}
	}
	began := time.Now()
	err = s.untilJobs(ctx, func(j job) bool { return j.Status == "ready" })
	s.moved.Mirrored = time.Since(began)
	return err
}

func (s *sender) beginMirror(ctx context.Context, x mirror, sync string) error {
	return s.l.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		if err := c.PassFile(ctx, x.node, x.wire); err != nil {
			return err
		}
		there := map[string]any{"driver": "nbd", "node-name": x.node, "export": x.name, "server": map[string]any{"type": "fd", "str": x.node}}
		if err := c.Do(ctx, "blockdev-add", there, nil); err != nil {
			return err
		}
		return c.Do(ctx, "blockdev-mirror", map[string]any{
			"job-id": x.job, "device": movedNode(x.name), "target": x.node, "sync": sync, "copy-mode": "write-blocking",
			"speed": s.d.Bandwidth, "auto-dismiss": false, "on-target-error": "report", "on-source-error": "report",
		}, nil)
	})
}

// untilJobs waits until all copies are in a state.
func (s *sender) untilJobs(ctx context.Context, is func(j job) bool) error {
	for {
		all, err := s.l.jobs(ctx)
		if err != nil {
			return err
		}
		s.moved.Disk, s.moved.DiskLeft = 0, 0
		good := len(all)
		for _, j := range all {
			s.moved.Disk += j.Done
			s.moved.DiskLeft += j.Total - min(j.Done, j.Total)
			switch {
			case j.Why != "" || j.Status == "aborting":
				return &errs.Error{Op: "qemu.move", Kind: errs.Unavailable, Msg: fmt.Sprintf("disk %s could not be copied: %s", s.nameOf(j.ID), orElse(j.Why, j.Status))}
			case !is(j):
				good--
			}
		}
		s.report()
		if len(all) < len(s.mirrors) {
			return &errs.Error{Op: "qemu.move", Kind: errs.Unavailable, Msg: "a disk is not copied any more"}
		}
		if good == len(s.mirrors) {
			return nil
		}
		if !s.v.wait(ctx) {
			return ctx.Err()
		}
	}
}

func (s *sender) nameOf(id string) string {
	for _, x := range s.mirrors {
		if x.job == id {
			return x.name
		}
	}
	return id
}

// finishMirrors ends the copying, which leaves the copies complete: the guest
// stands still. The disks stay what the guest has here.
func (s *sender) finishMirrors(ctx context.Context) error {
	for _, x := range s.mirrors {
		if err := s.l.do(ctx, "block-job-cancel", map[string]any{"device": x.job}, nil); err != nil {
			return err
		}
	}
	if err := s.untilJobs(ctx, func(j job) bool { return j.Status == "concluded" }); err != nil {
		return err
	}
	for _, x := range s.mirrors {
		if err := s.l.do(ctx, "job-dismiss", map[string]any{"id": x.job}, nil); err != nil {
			return err
		}
	}
	return nil
}

// dropMirrors gives up copying.
func (s *sender) dropMirrors(ctx context.Context) error {
	for _, x := range s.mirrors {
		sever(x.wire) // else what the guest writes could wait for who does not answer
	}
	return s.clear(ctx)
}

// clearTime is how long QEMU may take to give up copying.
const clearTime = 20 * time.Second

// clear takes away what a move began that did not come to its end, be it an
// earlier daemon's.
func (s *sender) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clearTime)
	defer cancel()
	for {
		all, err := s.l.jobs(ctx)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			break
		}
		for _, j := range all {
			if j.Status == "concluded" {
				err = s.l.do(ctx, "job-dismiss", map[string]any{"id": j.ID}, nil)
			} else {
				// Refused while it ends already.
				_ = s.l.do(ctx, "block-job-cancel", map[string]any{"device": j.ID, "force": true}, nil)
			}
			if err != nil {
				return err
			}
		}
		if !s.v.wait(ctx) {
			return ctx.Err()
		}
	}
	all, err := s.l.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range all {
		if strings.HasPrefix(n.Name, mirrorPrefix) {
			if err := s.l.do(ctx, "blockdev-del", map[string]any{"node-name": n.Name}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
