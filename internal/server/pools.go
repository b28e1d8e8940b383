package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/model/pool"
	"lodge/internal/store/tables"
)

// PoolName is the parameter of every call about one pool.
type PoolName struct {
	Name string `path:"name" doc:"name of the pool" example:"default"`
}

func (s *Server) poolRoutes() {
	register(s, huma.Operation{OperationID: "list-pools", Method: http.MethodGet, Path: "/v1/pools", Summary: "List storage pools"}, s.listPools)
	register(s, huma.Operation{OperationID: "create-pool", Method: http.MethodPost, Path: "/v1/pools", Summary: "Make a storage pool", DefaultStatus: http.StatusAccepted}, s.createPool)
	register(s, huma.Operation{OperationID: "get-pool", Method: http.MethodGet, Path: "/v1/pools/{name}", Summary: "Show a storage pool"}, s.getPool)
	register(s, huma.Operation{OperationID: "remove-pool", Method: http.MethodDelete, Path: "/v1/pools/{name}", Summary: "Remove a storage pool", DefaultStatus: http.StatusAccepted}, s.removePool)
}

func (s *Server) listPools(ctx context.Context, in *Condition) (*listOutput[api.Pool], error) {
	return listed(s, *in, func() []api.Pool {
		used := s.usedPools()
		all := []api.Pool{}
		for _, r := range s.Tables.Pools.List() {
			all = append(all, s.poolAPI(ctx, r, used[r.Name]))
		}
		return all
	}), nil
}

type poolOutput struct{ Body api.Pool }

func (s *Server) getPool(ctx context.Context, in *PoolName) (*poolOutput, error) {
	r, err := s.Tables.Pools.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return &poolOutput{Body: s.poolAPI(ctx, r, s.usedPools()[r.Name])}, nil
}

type createPoolInput struct {
	Waiting
	Body api.PoolCreate
}

func (s *Server) createPool(ctx context.Context, in *createPoolInput) (*operationOutput, error) {
	op, err := s.Door.CreatePool(ctx, person, in.Body.Name, poolSpec(in.Body))
	return s.receipt(ctx, op, err, in.Wait)
}

func poolSpec(b api.PoolCreate) pool.Spec {
	return pool.Spec{Driver: b.Driver, Source: b.Source, Size: b.SizeBytes}
}

type removePoolInput struct {
	PoolName
	Waiting
}

func (s *Server) removePool(ctx context.Context, in *removePoolInput) (*operationOutput, error) {
	op, err := s.Door.RemovePool(ctx, person, in.Name)
	return s.receipt(ctx, op, err, in.Wait)
}

func (s *Server) usedPools() map[string][]string {
	used := map[string][]string{}
	for _, g := range s.Tables.Guests.List() {
		used[g.Spec.Pool] = append(used[g.Spec.Pool], g.Name)
	}
	return used
}

// poolAPI leaves the sizes of a pool that cannot be measured 0: its problem
// says why.
func (s *Server) poolAPI(ctx context.Context, r tables.PoolRecord, used []string) api.Pool {
	p := api.Pool{
		Name: r.Name, ID: r.ID, Driver: r.Spec.Driver, Source: r.Spec.Source, Path: r.Status.Path, Ready: r.Status.Ready,
		Quota: r.Status.Quota, UsedBy: orEmpty(used), Created: r.Created, Problem: problemAPI(r.Status.Problem),
	}
	if !r.Status.Ready {
		return p
	}
	if space, err := s.Space(ctx, r.Name); err == nil {
		p.TotalBytes, p.UsedBytes, p.FreeBytes = space.Total, space.Used, space.Free
	}
	return p
}
