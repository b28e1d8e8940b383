package server

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/model/kernel"
	"lodge/internal/store/tables"
)

// KernelName has a slash in it.
type KernelName struct {
	Name string `path:"name" doc:"name of the kernel; slashes may stay as they are" example:"linux/debian-12"`
}

func (s *Server) kernelRoutes() {
	const one = "/v1/kernels/{name...}"
	register(s, huma.Operation{OperationID: "list-kernels", Method: http.MethodGet, Path: "/v1/kernels", Summary: "List kernels"}, s.listKernels)
	register(s, huma.Operation{OperationID: "get-kernel", Method: http.MethodGet, Path: one, Summary: "Show a kernel"}, s.getKernel)
	register(s, huma.Operation{OperationID: "remove-kernel", Method: http.MethodDelete, Path: one, Summary: "Remove a kernel", DefaultStatus: http.StatusAccepted}, s.removeKernel)
	register(s, huma.Operation{OperationID: "build-kernel", Method: http.MethodPost, Path: "/v1/kernel-builds", Summary: "Make a kernel from packages or from source", DefaultStatus: http.StatusAccepted}, s.buildKernel)
}

func (s *Server) listKernels(_ context.Context, in *Condition) (*listOutput[api.Kernel], error) {
	return listed(s, *in, func() []api.Kernel {
		used := s.usedKernels()
		all := []api.Kernel{}
		for _, r := range s.Tables.Kernels.List() {
			all = append(all, kernelAPI(r, used[r.Name]))
		}
		return all
	}), nil
}

type kernelOutput struct{ Body api.Kernel }

func (s *Server) getKernel(_ context.Context, in *KernelName) (*kernelOutput, error) {
	r, err := s.Tables.Kernels.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return &kernelOutput{Body: kernelAPI(r, s.usedKernels()[r.Name])}, nil
}

type removeKernelInput struct {
	KernelName
	Waiting
}

func (s *Server) removeKernel(ctx context.Context, in *removeKernelInput) (*operationOutput, error) {
	op, err := s.Door.RemoveKernel(ctx, person, in.Name)
	return s.receipt(ctx, op, err, in.Wait)
}

type buildKernelInput struct {
	Waiting
	Body api.KernelBuild
}

func (s *Server) buildKernel(ctx context.Context, in *buildKernelInput) (*operationOutput, error) {
	op, err := s.Door.BuildKernel(ctx, person, in.Body.Name, in.Body.Refresh)
	return s.receipt(ctx, op, err, in.Wait)
}

// usedKernels lists the guests that boot each kernel, by its name.
func (s *Server) usedKernels() map[string][]string {
	used := map[string][]string{}
	for guest, kernel := range s.Door.KernelUsers() {
		used[kernel] = append(used[kernel], guest)
	}
	for _, guests := range used {
		slices.Sort(guests)
	}
	return used
}

func kernelAPI(r tables.KernelRecord, used []string) api.Kernel {
	info := r.Status.Info
	return api.Kernel{
		Name: r.Name, ID: r.ID, Kind: string(kernel.SortOf(r.Name)), Version: info.Version, From: info.From, Modules: orEmpty(info.Modules),
		Digest: r.Status.Digest, SizeBytes: r.Status.Size, Ready: r.Status.Digest != "" && r.Deleting == nil, UsedBy: orEmpty(used),
		Created: r.Created, Built: r.Status.Built, Problem: problemAPI(r.Status.Problem),
	}
}
