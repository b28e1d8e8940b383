// Package server speaks HTTP for the house: it turns requests into verbs of
// the door and records into what package api promises. It decides nothing.
package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/base/bus"
	"lodge/internal/base/session"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// Live is what can be done with a guest that runs, by its id. A guest that
// does not run is an errs.Conflict, one whose engine cannot do it an
// errs.Unsupported.
type Live interface {
	Exec(ctx context.Context, id string, r session.Request) (session.Session, error)
	Console(ctx context.Context, id string) (Console, error)
	// Logs writes the last tail lines (less than 0: all) of what the guest's
	// first process said, and with follow what it goes on to say, until ctx
	// ends.
	Logs(ctx context.Context, id string, tail int, follow bool, w io.Writer) error
	Pack(ctx context.Context, id, path string, w io.Writer) error
	Unpack(ctx context.Context, id, dir string, r io.Reader) error
	// Usage also returns the bytes that the writable layer takes.
	Usage(ctx context.Context, id string) (u guest.Usage, disk uint64, err error)
}

// Console is one pair of eyes and hands at a guest's console. Closing it
// leaves the console to others.
type Console interface {
	io.ReadWriteCloser
	Resize(rows, cols uint16) error
}

// Images takes and gives the content of images.
type Images interface {
	// Spool keeps an upload until it is imported or discarded, and returns
	// its id and the source that makes an image of it. limit is the most
	// bytes that what is unpacked may take; 0 is the host's own limit.
	Spool(ctx context.Context, r io.Reader, limit uint64) (source, id string, err error)
	Discard(id string) error
	// Export writes an image as "tar", "erofs" or "disk".
	Export(ctx context.Context, name, format string, w io.Writer) error
}

// Space is a pool's size in bytes.
type Space struct{ Total, Used, Free uint64 }

// Options is what the server serves. Every field must be set but Token, which
// closes HTTPS when it is empty, and Unsaid.
type Options struct {
	Door   *admission.Door
	Store  *store.Store
	Tables *tables.Tables
	Live   Live
	Unsaid func(id string) *model.Problem // of a guest, that its record has no space for; nil: none
	Images Images
	// Screens are those of running guests.
	Screens Screens
	Care    Care
	Space   func(ctx context.Context, pool string) (Space, error)
	// Explain says where a guest is, where it should be, and what comes next.
	Explain func(ctx context.Context, id string) (guest.Explanation, error)
	// Foresee says what a change of a guest's model would mean.
	Foresee func(ctx context.Context, id string, to guest.Model, engine string) (api.ModelChange, error)
	// Probe finds out anew which engines can run guests here.
	Probe    func(ctx context.Context) ([]api.Engine, error)
	Doctor   func(ctx context.Context, fix bool) ([]api.Check, error)
	Host     func(ctx context.Context) (api.Host, error)
	Graph    func() []string
	Progress *bus.Bus[operation.Progress]
	HostName string
	Version  string
	Token    string // that HTTPS asks for
	Log      *slog.Logger
}

// Server answers requests. Make it with New.
type Server struct {
	Options
	mux     *http.ServeMux
	api     huma.API
	waiters *waiters
	repeats *repeats
	tickets *tickets
}

// limit on JSON bodies: an apply file of some thousand guests fits.
const maxBody = 16 << 20

// New returns a server that is ready to answer. It follows operations until
// ctx ends.
func New(ctx context.Context, o Options) *Server {
	s := &Server{Options: o, mux: http.NewServeMux(), waiters: newWaiters(), repeats: newRepeats(), tickets: newTickets(time.Now)}
	config := huma.DefaultConfig("Lodge", "v1")
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.CreateHooks = nil // they add $schema to every body
	config.RejectUnknownQueryParameters = true
	config.Transformers = []huma.Transformer{wireErrors}
	config.Info.Description = "Server virtualization: guests, images, pools, networks."
	s.api = humago.New(s.mux, config)
	s.routes()
	s.mux.HandleFunc("/", noRoute)
	if o.Tables != nil {
		go s.waiters.follow(ctx, o.Tables.Operations, o.Store, o.Log)
	}
	return s
}

func (s *Server) routes() {
	s.guestRoutes()
	s.guestVerbs()
	s.modelRoutes()
	s.snapshotRoutes()
	s.streamRoutes()
	s.displayRoutes()
	s.careRoutes()
	s.deviceRoutes()
	s.engineRoutes()
	s.imageRoutes()
	s.kernelRoutes()
	s.poolRoutes()
	s.networkRoutes()
	s.forwardRoutes()
	s.operationRoutes()
	s.hostRoutes()
	s.eventRoutes()
	s.applyRoutes()
}

// ServeHTTP answers a request that has been let in already.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer s.recovered(w, r)
	s.mux.ServeHTTP(w, r)
}

// person is who asked, as receipts name them. There are no accounts yet:
// whoever is let in is the administrator.
const person = "user"

// register adds a route. The handler's errors become api.Error bodies.
func register[I, O any](s *Server, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
	op.MaxBodyBytes = maxBody
	s.document(&op)
	if op.DefaultStatus == http.StatusAccepted {
		op.Responses["200"] = s.jsonAnswer("It was waited for and is done", api.Operation{})
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, s.problem(err, op.OperationID)
		}
		return out, nil
	})
}

// stream adds a route whose answer, or request, is a stream. The handler may
// return an error as long as it has written nothing; after that the connection
// is broken off, so that nobody takes half a stream for a whole one.
func stream[I any](s *Server, op huma.Operation, handle func(ctx context.Context, in *I, w *streamWriter, r *http.Request) error) {
	s.document(&op)
	huma.Register(s.api, op, func(_ context.Context, in *I) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(c huma.Context) {
			r, w := humago.Unwrap(c)
			out := &streamWriter{ResponseWriter: w, flush: http.NewResponseController(w)}
			err := handle(r.Context(), in, out, r)
			switch {
			case err == nil:
			case out.begun:
				s.Log.Debug("stream ended early", "route", op.OperationID, "err", err)
				panic(http.ErrAbortHandler)
			default:
				s.problem(err, op.OperationID).write(w)
			}
		}}, nil
	})
}

// document gives an operation the error body that all share.
func (s *Server) document(op *huma.Operation) {
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = &huma.Response{
		Description: "What went wrong",
		Content:     map[string]*huma.MediaType{problemType: {Schema: s.errorSchema()}},
	}
}

// streamWriter knows whether anything was sent, and sends each write at once.
type streamWriter struct {
	http.ResponseWriter
	flush *http.ResponseController
	begun bool
}

// Unwrap is for http.ResponseController.
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes that the answer has begun.
func (w *streamWriter) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

// Write sends p.
func (w *streamWriter) Write(p []byte) (int, error) {
	w.begun = true
	n, err := w.ResponseWriter.Write(p)
	if err != nil {
		return n, err
	}
	return n, w.flush.Flush()
}
