package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/model/guest"
	"lodge/internal/store/tables"
)

// VerbInput is the request of a verb that needs no words.
type VerbInput struct {
	GuestName
	Waiting
}

func (s *Server) guestVerbs() {
	plain := func(verb, summary string, do func(ctx context.Context, by, name string) (tables.OperationRecord, error)) {
		register(s, verbRoute(verb, summary), func(ctx context.Context, in *VerbInput) (*operationOutput, error) {
			op, err := do(ctx, person, in.Name)
			return s.receipt(ctx, op, err, in.Wait)
		})
	}
	plain("start", "Boot a guest that is down, or let a paused one go on", s.Door.StartGuest)
	plain("pause", "Halt a running guest where it is", s.Door.PauseGuest)
	plain("resume", "Let a paused guest go on", s.Door.ResumeGuest)
	register(s, verbRoute("stop", "Take a guest down"), s.stopGuest)
	register(s, verbRoute("restart", "Take a guest down and boot it"), s.restartGuest)
	register(s, verbRoute("rename", "Give a guest another name"), s.renameGuest)
	register(s, huma.Operation{OperationID: "guest-usage", Method: http.MethodGet, Path: "/v1/guests/{name}/usage", Summary: "What a guest uses now"}, s.guestUsage)
	register(s, huma.Operation{OperationID: "usage", Method: http.MethodGet, Path: "/v1/usage", Summary: "What every running guest uses now"}, s.usage)
}

func verbRoute(verb, summary string) huma.Operation {
	return huma.Operation{
		OperationID: verb + "-guest", Method: http.MethodPost, Path: "/v1/guests/{name}/" + verb, Summary: summary,
		DefaultStatus: http.StatusAccepted,
	}
}

type stopInput struct {
	VerbInput
	Body *api.GuestStop
}

func (s *Server) stopGuest(ctx context.Context, in *stopInput) (*operationOutput, error) {
	how := api.GuestStop{}
	if in.Body != nil {
		how = *in.Body
	}
	op, err := s.Door.StopGuest(ctx, person, in.Name, how.Force, how.Timeout)
	return s.receipt(ctx, op, err, in.Wait)
}

type restartInput struct {
	VerbInput
	Force bool `query:"force" doc:"end it at once instead of asking it"`
}

func (s *Server) restartGuest(ctx context.Context, in *restartInput) (*operationOutput, error) {
	op, err := s.Door.RestartGuest(ctx, person, in.Name, in.Force)
	return s.receipt(ctx, op, err, in.Wait)
}

type renameInput struct {
	VerbInput
	Body api.Rename
}

func (s *Server) renameGuest(ctx context.Context, in *renameInput) (*operationOutput, error) {
	op, err := s.Door.RenameGuest(ctx, person, in.Name, in.Body.Name)
	return s.receipt(ctx, op, err, in.Wait)
}

type usageOutput struct{ Body api.Usage }

func (s *Server) guestUsage(ctx context.Context, in *GuestName) (*usageOutput, error) {
	r, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	u, err := s.usageOf(ctx, r)
	if err != nil {
		return nil, err
	}
	return &usageOutput{Body: u}, nil
}

type usageListOutput struct{ Body []api.Usage }

// usage leaves out guests that end while it looks.
func (s *Server) usage(ctx context.Context, _ *struct{}) (*usageListOutput, error) {
	out := &usageListOutput{Body: []api.Usage{}}
	for _, r := range s.Tables.Guests.List() {
		if r.Status.Phase != guest.Running && r.Status.Phase != guest.Paused {
			continue
		}
		if u, err := s.usageOf(ctx, r); err == nil {
			out.Body = append(out.Body, u)
		}
	}
	return out, nil
}

func (s *Server) usageOf(ctx context.Context, r tables.GuestRecord) (api.Usage, error) {
	u, disk, err := s.Live.Usage(ctx, r.ID)
	if err != nil {
		return api.Usage{}, err
	}
	return api.Usage{
		Name: r.Name, At: s.Door.Now(), CPUSeconds: u.CPUSeconds, ThrottledSeconds: u.Throttled,
		MemoryBytes: u.Memory, MemoryCacheBytes: u.MemoryCache, MemoryLimitBytes: u.MemoryLimit, SwapBytes: u.Swap,
		Processes: u.Processes, ReadBytes: u.ReadBytes, WriteBytes: u.WriteBytes, RxBytes: u.RxBytes, TxBytes: u.TxBytes,
		RxPackets: u.RxPackets, TxPackets: u.TxPackets, OOMKills: u.OOMKills, DiskBytes: disk, DiskLimitBytes: r.Spec.Disk,
	}, nil
}
