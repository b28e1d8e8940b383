package server

import (
	"context"
	"net/http"
	"net/netip"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/store/tables"
)

// NetworkName is the parameter of every call about one network.
type NetworkName struct {
	Name string `path:"name" doc:"name of the network" example:"default"`
}

func (s *Server) networkRoutes() {
	register(s, huma.Operation{OperationID: "list-networks", Method: http.MethodGet, Path: "/v1/networks", Summary: "List networks"}, s.listNetworks)
	register(s, huma.Operation{OperationID: "create-network", Method: http.MethodPost, Path: "/v1/networks", Summary: "Make a network", DefaultStatus: http.StatusAccepted}, s.createNetwork)
	register(s, huma.Operation{OperationID: "get-network", Method: http.MethodGet, Path: "/v1/networks/{name}", Summary: "Show a network"}, s.getNetwork)
	register(s, huma.Operation{OperationID: "remove-network", Method: http.MethodDelete, Path: "/v1/networks/{name}", Summary: "Remove a network", DefaultStatus: http.StatusAccepted}, s.removeNetwork)
}

func (s *Server) listNetworks(_ context.Context, in *Condition) (*listOutput[api.Network], error) {
	return listed(s, *in, func() []api.Network {
		guests := s.guestsByNetwork()
		all := []api.Network{}
		for _, r := range s.Tables.Networks.List() {
			all = append(all, networkAPI(r, guests[r.Name]))
		}
		return all
	}), nil
}

type networkOutput struct{ Body api.Network }

func (s *Server) getNetwork(_ context.Context, in *NetworkName) (*networkOutput, error) {
	r, err := s.Tables.Networks.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return &networkOutput{Body: networkAPI(r, s.guestsByNetwork()[r.Name])}, nil
}

type createNetworkInput struct {
	Waiting
	Body api.NetworkCreate
}

func (s *Server) createNetwork(ctx context.Context, in *createNetworkInput) (*operationOutput, error) {
	op, err := s.Door.CreateNetwork(ctx, person, admission.NetworkWish(in.Body))
	return s.receipt(ctx, op, err, in.Wait)
}

type removeNetworkInput struct {
	NetworkName
	Waiting
}

func (s *Server) removeNetwork(ctx context.Context, in *removeNetworkInput) (*operationOutput, error) {
	op, err := s.Door.RemoveNetwork(ctx, person, in.Name)
	return s.receipt(ctx, op, err, in.Wait)
}

func (s *Server) guestsByNetwork() map[string]int {
	count := map[string]int{}
	for _, g := range s.Tables.Guests.List() {
		for _, n := range g.Spec.NICs {
			count[n.Network]++
		}
	}
	return count
}

func networkAPI(r tables.NetworkRecord, guests int) api.Network {
	return api.Network{
		Name: r.Name, ID: r.ID, Driver: r.Spec.Driver, IPv4: prefixText(r.Spec.IPv4), IPv6: prefixText(r.Spec.IPv6), NAT: r.Spec.NAT,
		Domain: r.Spec.Domain, Device: r.Status.Device, Ready: r.Status.Ready, Guests: guests, Created: r.Created,
		Problem: problemAPI(r.Status.Problem),
	}
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
