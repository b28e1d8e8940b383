package server

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/base/errs"
	"lodge/internal/model/image"
	"lodge/internal/store/tables"
)

// ImageName may have slashes in it.
type ImageName struct {
	Name string `path:"name" doc:"name of the image; slashes may stay as they are" example:"debian/12"`
}

func (s *Server) imageRoutes() {
	const one = "/v1/images/{name...}"
	register(s, huma.Operation{OperationID: "list-images", Method: http.MethodGet, Path: "/v1/images", Summary: "List images"}, s.listImages)
	register(s, huma.Operation{OperationID: "get-image", Method: http.MethodGet, Path: one, Summary: "Show an image"}, s.getImage)
	register(s, huma.Operation{OperationID: "remove-image", Method: http.MethodDelete, Path: one, Summary: "Remove an image", DefaultStatus: http.StatusAccepted}, s.removeImage)
	register(s, huma.Operation{OperationID: "build-image", Method: http.MethodPost, Path: "/v1/image-builds", Summary: "Build an image from packages", DefaultStatus: http.StatusAccepted}, s.buildImage)
	stream(s, huma.Operation{
		OperationID: "import-image", Method: http.MethodPost, Path: "/v1/image-imports", Summary: "Make an image from a root tree in a tar file, or from a disk, plain or compressed",
		RequestBody: streamBody("application/x-tar", "application/octet-stream"), DefaultStatus: http.StatusAccepted,
		Responses: map[string]*huma.Response{"202": s.jsonAnswer("The receipt", api.Operation{})},
	}, s.importImage)
	stream(s, huma.Operation{
		OperationID: "export-image", Method: http.MethodGet, Path: "/v1/image-exports", Summary: "Fetch an image as a file",
		Responses: map[string]*huma.Response{"200": streamAnswer("The file", "application/octet-stream")},
	}, s.exportImage)
}

func (s *Server) listImages(_ context.Context, in *Condition) (*listOutput[api.Image], error) {
	return listed(s, *in, func() []api.Image {
		used := s.usedImages()
		all := []api.Image{}
		for _, r := range s.Tables.Images.List() {
			all = append(all, imageAPI(r, used[r.Name], false))
		}
		return all
	}), nil
}

type imageOutput struct{ Body api.Image }

func (s *Server) getImage(_ context.Context, in *ImageName) (*imageOutput, error) {
	r, err := s.Tables.Images.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return &imageOutput{Body: imageAPI(r, s.usedImages()[r.Name], true)}, nil
}

type removeImageInput struct {
	ImageName
	Waiting
}

func (s *Server) removeImage(ctx context.Context, in *removeImageInput) (*operationOutput, error) {
	op, err := s.Door.RemoveImage(ctx, person, in.Name)
	return s.receipt(ctx, op, err, in.Wait)
}

type buildImageInput struct {
	Waiting
	Body api.ImageBuild
}

func (s *Server) buildImage(ctx context.Context, in *buildImageInput) (*operationOutput, error) {
	op, err := s.Door.BuildImage(ctx, person, imageWish(in.Body))
	return s.receipt(ctx, op, err, in.Wait)
}

func imageWish(b api.ImageBuild) admission.ImageWish {
	return admission.ImageWish{Name: b.Name, Variant: image.Variant(b.Variant), As: b.As, Rebuild: b.Rebuild}
}

type importImageInput struct {
	Waiting
	Name    string `query:"name" required:"true" doc:"name of the image" example:"mine/1"`
	MaxSize uint64 `query:"max_size" doc:"the most bytes that what is unpacked may take"`
	Arch    string `query:"architecture" doc:"that a disk is for, if it does not show" example:"amd64"`
}

// importImage looks at the name before the upload is read, so that nobody
// sends a gigabyte to hear of a typing error.
func (s *Server) importImage(ctx context.Context, in *importImageInput, w *streamWriter, r *http.Request) error {
	if err := admission.CheckImageName("name", in.Name); err != nil {
		return err
	}
	if _, err := parseWait(in.Wait); err != nil {
		return err
	}
	if _, err := s.Tables.Images.Get(in.Name); err == nil {
		return &errs.Error{Kind: errs.Exists, Ref: "image/" + in.Name, Field: "name", Msg: "exists already", Hint: "choose another name, or remove it: lodge image rm " + in.Name}
	}
	source, upload, err := s.Images.Spool(ctx, r.Body, in.MaxSize)
	if err != nil {
		return err
	}
	op, err := s.Door.ImportImage(ctx, person, in.Name, source, upload, in.Arch)
	if err != nil {
		if derr := s.Images.Discard(upload); derr != nil {
			s.Log.Warn("upload not discarded", "upload", upload, "err", derr)
		}
		return err
	}
	out, err := s.receipt(ctx, op, nil, in.Wait)
	if err != nil {
		return err
	}
	w.Header().Set("Lodge-Operation", out.Operation)
	return writeJSON(w, out.Status, out.Body)
}

type exportImageInput struct {
	Name   string `query:"name" required:"true" doc:"name of the image" example:"debian/12"`
	Format string `query:"format" enum:"tar,erofs,disk" default:"tar"`
}

func (s *Server) exportImage(ctx context.Context, in *exportImageInput, w *streamWriter, _ *http.Request) error {
	if _, err := s.Tables.Images.Get(in.Name); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	return s.Images.Export(ctx, in.Name, in.Format, w)
}

// usedImages lists the guests made from each image, by its name.
func (s *Server) usedImages() map[string][]string {
	used := map[string][]string{}
	for _, g := range s.Tables.Guests.List() {
		used[g.Spec.Image] = append(used[g.Spec.Image], g.Name)
	}
	return used
}

func imageAPI(r tables.ImageRecord, used []string, packages bool) api.Image {
	info := r.Status.Info
	i := api.Image{
		Name: r.Name, ID: r.ID, Source: r.Spec.Source, Variant: string(r.Spec.Variant), Digest: r.Status.Digest, SizeBytes: r.Status.Size,
		Ready: r.Status.Digest != "" && r.Deleting == nil, OS: info.OS, Release: first(info.Release, r.Spec.Release), Description: info.Pretty,
		Disk: info.Disk, DiskBytes: info.DiskSize, Architecture: info.Architecture, Init: info.Init, CloudInit: info.CloudInit, Files: info.Files, UsedBy: orEmpty(slices.Clone(used)),
		Created: r.Created, Built: r.Status.Built, Problem: problemAPI(r.Status.Problem),
	}
	if packages {
		i.Packages = info.Packages
	}
	return i
}
