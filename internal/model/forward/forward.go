// Package forward says what a port forward is: a port of the host that leads
// to a port of a guest.
package forward

import (
	"net/netip"

	"lodge/internal/model"
)

// Kind is the noun's name in keys and events.
const Kind model.Kind = "forward"

// Spec is what was asked for. The record's name is Name(spec): one listener,
// one record.
type Spec struct {
	Protocol string     `json:"protocol"`        // "tcp", "udp"
	Listen   netip.Addr `json:"listen,omitzero"` // zero: every address of the host
	Port     uint16     `json:"port"`            // of the host
	Guest    string     `json:"guest"`           // id of the guest
	Target   uint16     `json:"target"`          // port of the guest
}

// Status is what the host found out.
type Status struct {
	Generation int64          `json:"generation"`
	Active     bool           `json:"active"`
	Problem    *model.Problem `json:"problem,omitempty"`
}
