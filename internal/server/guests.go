package server

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/store/tables"
)

// GuestName is the parameter of every call about one guest. Like all of its
// kind it is exported only because parameters are found by reflection.
type GuestName struct {
	Name string `path:"name" doc:"name of the guest" example:"web1"`
}

func (s *Server) guestRoutes() {
	const path = "/v1/guests"
	register(s, huma.Operation{OperationID: "list-guests", Method: http.MethodGet, Path: path, Summary: "List guests"}, s.listGuests)
	register(s, huma.Operation{OperationID: "create-guest", Method: http.MethodPost, Path: path, Summary: "Make one guest or many", DefaultStatus: http.StatusAccepted}, s.createGuests)
	register(s, huma.Operation{OperationID: "get-guest", Method: http.MethodGet, Path: path + "/{name}", Summary: "Show a guest"}, s.getGuest)
	register(s, huma.Operation{OperationID: "set-guest", Method: http.MethodPatch, Path: path + "/{name}", Summary: "Change a guest", DefaultStatus: http.StatusAccepted}, s.setGuest)
	register(s, huma.Operation{OperationID: "remove-guest", Method: http.MethodDelete, Path: path + "/{name}", Summary: "Remove a guest and everything of it", DefaultStatus: http.StatusAccepted}, s.removeGuest)
}

type listGuestsInput struct {
	Condition
	Label []string `query:"label,explode" doc:"only guests with this label" example:"tier=web"`
}

func (s *Server) listGuests(_ context.Context, in *listGuestsInput) (*listOutput[api.Guest], error) {
	wanted, err := labelFilter(in.Label)
	if err != nil {
		return nil, err
	}
	return listed(s, in.Condition, func() []api.Guest {
		publish := s.publishes()
		all := []api.Guest{}
		for _, r := range s.Tables.Guests.List() {
			if wanted(r.Labels) {
				all = append(all, s.guestAPI(r, publish[r.ID]))
			}
		}
		return all
	}), nil
}

type createGuestInput struct {
	Waiting
	Key  string `header:"Idempotency-Key" maxLength:"200" doc:"a request with a key known for ten minutes is not carried out again"`
	Body api.GuestCreate
}

func (s *Server) createGuests(ctx context.Context, in *createGuestInput) (*operationOutput, error) {
	op, err := s.repeats.once(ctx, in.Key, in.Body, func() (tables.OperationRecord, error) {
		return s.Door.CreateGuests(ctx, person, wishOf(in.Body))
	})
	return s.receipt(ctx, op, err, in.Wait)
}

type guestOutput struct {
	ETag string `header:"ETag" doc:"generation of the guest, for If-Match"`
	Body api.Guest
}

func (s *Server) getGuest(_ context.Context, in *GuestName) (*guestOutput, error) {
	r, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	g := s.guestAPI(r, s.Door.PublishOf(r.ID))
	g.Last = r.Status.Last
	return &guestOutput{ETag: strconv.Quote(strconv.FormatInt(r.Generation, 10)), Body: g}, nil
}

type setGuestInput struct {
	GuestName
	Waiting
	IfMatch string `header:"If-Match" doc:"change it only if this is still its ETag"`
	Body    api.GuestPatch
}

func (s *Server) setGuest(ctx context.Context, in *setGuestInput) (*operationOutput, error) {
	generation, err := parseMatch(in.IfMatch)
	if err != nil {
		return nil, err
	}
	op, err := s.Door.SetGuest(ctx, person, in.Name, patchOf(in.Body), generation)
	return s.receipt(ctx, op, err, in.Wait)
}

func parseMatch(header string) (int64, error) {
	if header == "" || header == "*" {
		return 0, nil
	}
	n, err := strconv.ParseInt(strings.Trim(strings.TrimPrefix(header, "W/"), `"`), 10, 64)
	if err != nil || n < 1 {
		return 0, errs.Bad("If-Match", "is not an ETag of a guest", "send the ETag that GET answered with")
	}
	return n, nil
}

type removeGuestInput struct {
	GuestName
	Waiting
	Force bool `query:"force" doc:"even if it runs: it is ended at once"`
}

func (s *Server) removeGuest(ctx context.Context, in *removeGuestInput) (*operationOutput, error) {
	op, err := s.Door.RemoveGuest(ctx, person, in.Name, in.Force)
	return s.receipt(ctx, op, err, in.Wait)
}

// publishes lists all guests' forwards by guest, in one pass.
func (s *Server) publishes() map[string][]string {
	all := map[string][]string{}
	for _, f := range s.Tables.Forwards.List() {
		all[f.Spec.Guest] = append(all[f.Spec.Guest], admission.Publish(f.Spec))
	}
	for _, p := range all {
		slices.Sort(p)
	}
	return all
}

// problemOf is what is the matter with a guest, also while it cannot be written
// down.
func (s *Server) problemOf(r tables.GuestRecord) *model.Problem {
	if s.Unsaid == nil {
		return r.Status.Problem
	}
	return cmp.Or(s.Unsaid(r.ID), r.Status.Problem)
}

func (s *Server) guestAPI(r tables.GuestRecord, publish []string) api.Guest {
	model, _ := (guest.Guest{Spec: r.Spec, Status: r.Status}).InForce()
	g := api.Guest{
		Name: r.Name, ID: r.ID, Model: string(model), Image: r.Spec.Image, ImageDigest: r.Spec.Digest,
		Phase: string(r.Status.Phase), Doing: r.Status.Doing.Word(), Wanted: string(r.Spec.Power), Saved: r.Status.Saved, Problem: problemAPI(s.problemOf(r)),
		Addresses: []string{}, CPUs: r.Spec.CPUs, CPUWeight: r.Spec.CPUWeight, MemoryBytes: r.Spec.Memory, SwapBytes: r.Spec.Swap,
		Processes: r.Spec.Processes, IO: api.IO(r.Spec.IO), DiskBytes: r.Spec.Disk, Pool: r.Spec.Pool, NICs: []api.NIC{},
		Command: r.Spec.Command, Env: r.Spec.Env, CloudInit: r.Spec.UserData != "", Restart: string(r.Spec.Restart),
		Autostart: api.Autostart(r.Spec.Autostart), Ephemeral: r.Spec.Ephemeral, StopTimeout: r.Spec.StopTimeout, Labels: r.Labels,
		Publish: orEmpty(publish), Engine: r.Status.Engine, Pid: r.Status.Pid, Created: r.Created, Started: r.Status.Started,
		Restarts: r.Status.Restarts, Generation: r.Generation,
		Asked: r.Spec.Engine, Machine: r.Spec.Hardware.Machine, Firmware: r.Spec.Hardware.Firmware, TPM: r.Spec.Hardware.TPM,
		Kernel: r.Spec.Hardware.Kernel, CPUModel: r.Spec.Hardware.CPUModel, Disks: disksAPI(r.Spec.Disks),
		Booted: r.Status.Kernel, Ready: r.Status.Ready, Agent: r.Status.Agent,
	}
	if r.Status.Phase == guest.Running || r.Status.Phase == guest.Paused {
		g.Pending = r.Spec.Pending(r.Status.Devices)
	}
	if g.Phase == "" {
		g.Phase = string(guest.Unplaced)
	}
	if r.Deleting != nil && g.Doing == "" {
		g.Doing = guest.Destroy.Word()
	}
	if e := r.Status.Exit; e != nil {
		exit := api.Exit(*e)
		g.Exit = &exit
	}
	if h, err := s.Tables.Holders.ByID(r.ID); err == nil {
		g.Host = h.Spec.Host
	}
	for _, n := range r.Spec.NICs {
		g.NICs = append(g.NICs, api.NIC(n))
		for _, a := range []string{n.IPv4, n.IPv6} {
			if p, err := netip.ParsePrefix(a); err == nil {
				g.Addresses = append(g.Addresses, p.Addr().String())
			}
		}
	}
	for _, a := range r.Status.Addresses {
		if !slices.Contains(g.Addresses, a) {
			g.Addresses = append(g.Addresses, a)
		}
	}
	return g
}

func disksAPI(all []guest.FurtherDisk) (out []api.Disk) {
	for _, d := range all {
		out = append(out, api.Disk{Name: d.Name, SizeBytes: d.Size, ISO: d.Disc, Boot: d.Boot})
	}
	return out
}

func diskOf(d api.Disk) guest.FurtherDisk {
	return guest.FurtherDisk{Name: d.Name, Size: d.SizeBytes, Disc: d.ISO, Boot: d.Boot}
}

// disksOf keeps apart no list and an empty one.
func disksOf(all *[]api.Disk) *[]guest.FurtherDisk {
	if all == nil {
		return nil
	}
	out := make([]guest.FurtherDisk, 0, len(*all))
	for _, d := range *all {
		out = append(out, diskOf(d))
	}
	return &out
}

// filled is what was given, or nil for nothing.
func filled[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

// wishOf reads a creation request.
func wishOf(b api.GuestCreate) admission.GuestWish {
	w := specWish(b.GuestSpec)
	w.Start, w.Count = b.Start, b.Count
	return w
}

func specWish(b api.GuestSpec) admission.GuestWish {
	w := admission.GuestWish{
		Name: b.Name, Image: b.Image, Model: guest.Model(b.Model), Pool: b.Pool, Networks: b.Networks, Ephemeral: b.Ephemeral,
		Patch: admission.Patch{
			CPUs: b.CPUs, CPUWeight: b.CPUWeight, Memory: b.MemoryBytes, Swap: b.SwapBytes, Processes: b.Processes,
			IO: (*guest.IO)(b.IO), Disk: b.DiskBytes, Autostart: (*guest.Autostart)(b.Autostart), StopTimeout: b.StopTimeout,
			Engine: filled(b.Engine), Machine: filled(b.Machine), Firmware: filled(b.Firmware), TPM: filled(b.TPM),
			Kernel: filled(b.Kernel), CPUModel: filled(b.CPUModel),
		},
	}
	if b.Disks != nil {
		w.Disks = disksOf(&b.Disks)
	}
	if b.Restart != "" {
		restart := guest.Restart(b.Restart)
		w.Restart = &restart
	}
	if b.Command != nil {
		w.Command = &b.Command
	}
	if b.Env != nil {
		w.Env = &b.Env
	}
	if b.UserData != "" {
		w.UserData = &b.UserData
	}
	if b.Labels != nil {
		w.Labels = &b.Labels
	}
	if b.Publish != nil {
		w.Publish = &b.Publish
	}
	return w
}

func patchOf(b api.GuestPatch) admission.Patch {
	return admission.Patch{
		CPUs: b.CPUs, CPUWeight: b.CPUWeight, Memory: b.MemoryBytes, Swap: b.SwapBytes, Processes: b.Processes,
		IO: (*guest.IO)(b.IO), Disk: b.DiskBytes, Command: b.Command, Env: b.Env, UserData: b.UserData,
		Restart: (*guest.Restart)(b.Restart), Autostart: (*guest.Autostart)(b.Autostart), StopTimeout: b.StopTimeout,
		Labels: b.Labels, Publish: b.Publish,
		Engine: b.Engine, Machine: b.Machine, Firmware: b.Firmware, TPM: b.TPM, Kernel: b.Kernel, CPUModel: b.CPUModel,
		Disks: disksOf(b.Disks),
	}
}
