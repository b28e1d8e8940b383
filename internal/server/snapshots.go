package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/store/tables"
)

// SnapshotName is the parameters of every call about one snapshot.
type SnapshotName struct {
	GuestName
	Snapshot string `path:"snapshot" doc:"name of the snapshot" example:"before-upgrade"`
}

func (s *Server) snapshotRoutes() {
	const path = "/v1/guests/{name}/snapshots"
	register(s, huma.Operation{OperationID: "list-snapshots", Method: http.MethodGet, Path: path, Summary: "List a guest's snapshots"}, s.listSnapshots)
	register(s, huma.Operation{OperationID: "create-snapshot", Method: http.MethodPost, Path: path, Summary: "Take a snapshot of a guest", DefaultStatus: http.StatusAccepted}, s.createSnapshot)
	register(s, huma.Operation{OperationID: "get-snapshot", Method: http.MethodGet, Path: path + "/{snapshot}", Summary: "Show a snapshot"}, s.getSnapshot)
	register(s, huma.Operation{OperationID: "remove-snapshot", Method: http.MethodDelete, Path: path + "/{snapshot}", Summary: "Remove a snapshot", DefaultStatus: http.StatusAccepted}, s.removeSnapshot)
	register(s, huma.Operation{OperationID: "restore-snapshot", Method: http.MethodPost, Path: path + "/{snapshot}/restore", Summary: "Take a guest back to a snapshot", DefaultStatus: http.StatusAccepted}, s.restoreSnapshot)
	register(s, verbRoute("save", "Keep the memory of a guest that runs and switch it off"), s.saveGuest)
	register(s, verbRoute("clone", "Make a guest that is like another"), s.cloneGuest)
}

type snapshotsInput struct {
	GuestName
	Condition
}

func (s *Server) listSnapshots(_ context.Context, in *snapshotsInput) (*listOutput[api.Snapshot], error) {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return listed(s, in.Condition, func() []api.Snapshot {
		all := []api.Snapshot{}
		for _, r := range s.Door.SnapshotsOf(g.ID) {
			all = append(all, s.snapshotAPI(r))
		}
		return all
	}), nil
}

type createSnapshotInput struct {
	VerbInput
	Body *api.SnapshotCreate
}

func (s *Server) createSnapshot(ctx context.Context, in *createSnapshotInput) (*operationOutput, error) {
	var w admission.SnapshotWish
	if in.Body != nil {
		w = admission.SnapshotWish(*in.Body)
	}
	op, err := s.Door.CreateSnapshot(ctx, person, in.Name, w)
	return s.receipt(ctx, op, err, in.Wait)
}

type snapshotOutput struct{ Body api.Snapshot }

func (s *Server) getSnapshot(_ context.Context, in *SnapshotName) (*snapshotOutput, error) {
	_, r, err := s.Door.Snapshot(in.Name, in.Snapshot)
	if err != nil {
		return nil, err
	}
	return &snapshotOutput{Body: s.snapshotAPI(r)}, nil
}

type removeSnapshotInput struct {
	SnapshotName
	Waiting
}

func (s *Server) removeSnapshot(ctx context.Context, in *removeSnapshotInput) (*operationOutput, error) {
	op, err := s.Door.RemoveSnapshot(ctx, person, in.Name, in.Snapshot)
	return s.receipt(ctx, op, err, in.Wait)
}

type restoreSnapshotInput struct {
	SnapshotName
	Waiting
	Body *api.SnapshotRestore
}

func (s *Server) restoreSnapshot(ctx context.Context, in *restoreSnapshotInput) (*operationOutput, error) {
	op, err := s.Door.RestoreGuest(ctx, person, in.Name, in.Snapshot, in.Body != nil && in.Body.Start)
	return s.receipt(ctx, op, err, in.Wait)
}

func (s *Server) saveGuest(ctx context.Context, in *VerbInput) (*operationOutput, error) {
	op, err := s.Door.SaveGuest(ctx, person, in.Name)
	return s.receipt(ctx, op, err, in.Wait)
}

type cloneInput struct {
	VerbInput
	Body api.GuestClone
}

func (s *Server) cloneGuest(ctx context.Context, in *cloneInput) (*operationOutput, error) {
	op, err := s.Door.CloneGuest(ctx, person, in.Name, admission.CloneWish(in.Body))
	return s.receipt(ctx, op, err, in.Wait)
}

func (s *Server) snapshotAPI(r tables.SnapshotRecord) api.Snapshot {
	n := api.Snapshot{
		Name: r.Spec.Name, ID: r.ID, Note: r.Spec.Note, Memory: r.Spec.Memory, Created: r.Created, Problem: problemAPI(r.Status.Problem),
	}
	if g, err := s.Tables.Guests.ByID(r.Spec.Guest); err == nil {
		n.Guest = g.Name
	}
	if t := r.Status.Taken; t != nil {
		n.Ready, n.Taken, n.Model, n.Memory, n.Rest = true, &t.At, t.Model, t.Memory, string(t.Rest)
	}
	return n
}
