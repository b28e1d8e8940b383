package server

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/base/errs"
	"lodge/internal/model/operation"
	"lodge/internal/store/tables"
)

// Waiting is the parameter of every call that returns an operation.
type Waiting struct {
	Wait string `query:"wait" doc:"answer once the operation has ended, or after this time" example:"30s"`
}

type operationOutput struct {
	Status    int
	Operation string `header:"Lodge-Operation" doc:"id of the operation"`
	Body      api.Operation
}

// IDInput is the parameter of every call about one operation.
type IDInput struct {
	ID string `path:"id" doc:"id of the operation"`
}

func (s *Server) operationRoutes() {
	register(s, huma.Operation{OperationID: "list-operations", Method: http.MethodGet, Path: "/v1/operations", Summary: "List operations, newest first"}, s.listOperations)
	register(s, huma.Operation{OperationID: "get-operation", Method: http.MethodGet, Path: "/v1/operations/{id}", Summary: "Show an operation, or wait for it"}, s.getOperation)
	register(s, huma.Operation{OperationID: "cancel-operation", Method: http.MethodPost, Path: "/v1/operations/{id}/cancel", Summary: "Wait for an operation no longer"}, s.cancelOperation)
}

type listOperationsInput struct {
	Condition
	All bool `query:"all" doc:"also those that have ended"`
}

func (s *Server) listOperations(_ context.Context, in *listOperationsInput) (*listOutput[api.Operation], error) {
	return listed(s, in.Condition, func() []api.Operation {
		all := []api.Operation{}
		for _, r := range s.Tables.Operations.List() {
			if in.All || !r.Status.State.Final() {
				all = append(all, operationAPI(r))
			}
		}
		slices.SortStableFunc(all, func(a, b api.Operation) int { return b.Created.Compare(a.Created) })
		return all
	}), nil
}

type getOperationInput struct {
	IDInput
	Waiting
}

func (s *Server) getOperation(ctx context.Context, in *getOperationInput) (*operationOutput, error) {
	r, err := s.Tables.Operations.ByID(in.ID)
	if err != nil {
		return nil, err
	}
	limit, err := parseWait(in.Wait)
	if err != nil {
		return nil, err
	}
	if limit > 0 {
		return s.receipt(ctx, r, nil, in.Wait)
	}
	return &operationOutput{Status: http.StatusOK, Operation: r.ID, Body: operationAPI(r)}, nil
}

func (s *Server) cancelOperation(ctx context.Context, in *IDInput) (*operationOutput, error) {
	r, err := s.Door.Cancel(ctx, in.ID)
	return s.receipt(ctx, r, err, "")
}

// receipt answers a verb: at once, or when the operation has ended. One that
// failed is answered with its problem.
func (s *Server) receipt(ctx context.Context, r tables.OperationRecord, err error, wait string) (*operationOutput, error) {
	if err != nil {
		return nil, err
	}
	limit, err := parseWait(wait)
	if err != nil {
		return nil, err
	}
	r = s.waiters.wait(ctx, s.Tables.Operations, r, limit)
	out := &operationOutput{Status: http.StatusAccepted, Operation: r.ID, Body: operationAPI(r)}
	switch r.Status.State {
	case operation.Done:
		out.Status = http.StatusOK
	case operation.Failed, operation.Cancelled:
		return nil, failure(r)
	}
	return out, nil
}

// failure is how an operation that did not come to its end is answered.
func failure(r tables.OperationRecord) error {
	e := errs.Error{Kind: errs.Cancelled, Msg: "the operation was cancelled"}
	if p := r.Status.Problem; p != nil && r.Status.State == operation.Failed {
		e = errs.Error{Kind: errs.ParseKind(p.Code), Msg: p.Message, Hint: p.Hint}
	}
	if len(r.Spec.Subjects) == 1 {
		e.Ref = r.Spec.Subjects[0].String()
	}
	return &problem{body: *wire(&e), header: http.Header{"Lodge-Operation": {r.ID}}}
}

func operationAPI(r tables.OperationRecord) api.Operation {
	o := api.Operation{
		ID: r.ID, Verb: r.Spec.Verb, Subjects: make([]string, 0, len(r.Spec.Subjects)), By: r.Spec.By, State: string(r.Status.State),
		Problem: problemAPI(r.Status.Problem), Created: r.Created, Ended: r.Status.Ended,
	}
	if o.State == "" {
		o.State = string(operation.Working)
	}
	for _, s := range r.Spec.Subjects {
		o.Subjects = append(o.Subjects, s.String())
	}
	return o
}
