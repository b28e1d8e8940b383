package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
)

func (s *Server) deviceRoutes() {
	const one = "/v1/guests/{name}/"
	asked := func(id, method, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: one + path, Summary: summary, DefaultStatus: http.StatusAccepted}
	}
	register(s, asked("attach-disk", http.MethodPost, "disks", "Give a guest one more disk or disc"), s.attachDisk)
	register(s, asked("detach-disk", http.MethodDelete, "disks/{disk}", "Take a disk or disc away, with what is on the disk"), s.detachDisk)
	register(s, asked("attach-nic", http.MethodPost, "nics", "Put a guest on one more network"), s.attachNIC)
	register(s, asked("detach-nic", http.MethodDelete, "nics/{nic}", "Take a network card away"), s.detachNIC)
}

type attachDiskInput struct {
	VerbInput
	Body api.Disk
}

func (s *Server) attachDisk(ctx context.Context, in *attachDiskInput) (*operationOutput, error) {
	op, err := s.Door.AttachDisk(ctx, person, in.Name, diskOf(in.Body))
	return s.receipt(ctx, op, err, in.Wait)
}

type detachDiskInput struct {
	VerbInput
	Disk string `path:"disk" doc:"its name" example:"data"`
}

func (s *Server) detachDisk(ctx context.Context, in *detachDiskInput) (*operationOutput, error) {
	op, err := s.Door.DetachDisk(ctx, person, in.Name, in.Disk)
	return s.receipt(ctx, op, err, in.Wait)
}

type attachNICInput struct {
	VerbInput
	Body api.NICAttach
}

func (s *Server) attachNIC(ctx context.Context, in *attachNICInput) (*operationOutput, error) {
	op, err := s.Door.AttachNIC(ctx, person, in.Name, in.Body.Network)
	return s.receipt(ctx, op, err, in.Wait)
}

type detachNICInput struct {
	VerbInput
	NIC string `path:"nic" doc:"its name in the guest" example:"eth1"`
}

func (s *Server) detachNIC(ctx context.Context, in *detachNICInput) (*operationOutput, error) {
	op, err := s.Door.DetachNIC(ctx, person, in.Name, in.NIC)
	return s.receipt(ctx, op, err, in.Wait)
}
