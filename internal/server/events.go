package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/base/errs"
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/model/snapshot"
	"lodge/internal/store"
)

const (
	keepAlive = 15 * time.Second
	// patience is how long one write to a client may take before it is
	// dropped; it resumes where it was.
	patience = 10 * time.Second
	// settle is how long the store may take to refuse a revision that is too
	// old, before the stream is said to have begun.
	settle = 50 * time.Millisecond
	// newsBuffer holds progress for a client that reads slowly; more is lost,
	// oldest first.
	newsBuffer = 256
)

func (s *Server) eventRoutes() {
	stream(s, huma.Operation{
		OperationID: "events", Method: http.MethodGet, Path: "/v1/events", Summary: "Changes and progress as they happen (server-sent events)",
		Description: "The id of each change is its revision; sending it as Last-Event-ID or since resumes behind it. Each data is an Event.",
		Responses: map[string]*huma.Response{"200": {Description: "The stream", Content: map[string]*huma.MediaType{
			"text/event-stream": {Schema: s.schemaOf(api.Event{})},
		}}},
	}, s.events)
}

type eventsInput struct {
	Kind  string `query:"kind" enum:"guest,image,kernel,pool,network,forward,snapshot,operation" doc:"of this kind only"`
	Since int64  `query:"since" minimum:"0" doc:"every change after this revision; 0 is from now on"`
	Last  string `header:"Last-Event-ID" doc:"as since, for clients that reconnect by themselves; the last revision is told again"`
}

func (s *Server) events(ctx context.Context, in *eventsInput, w *streamWriter, _ *http.Request) error {
	from := store.Rev(in.Since)
	if in.Last != "" {
		n, err := strconv.ParseInt(in.Last, 10, 64)
		if err != nil || n < 0 {
			return errs.Bad("Last-Event-ID", "is not a revision", "send the id of the last event")
		}
		// One commit may be several events, of which the client may have seen
		// but the first: tell all of them again rather than lose one.
		from = store.Rev(max(n-1, 0))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, failed := s.changes(ctx, from)
	news := s.Progress.Subscribe(ctx, newsBuffer)
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	begin := time.NewTimer(settle)
	defer begin.Stop()
	out := &eventWriter{w: w, kind: in.Kind}
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return tooOld(err)
		case e := <-changes:
			err = out.send(s.eventAPI(e))
		case p, ok := <-news:
			if !ok {
				return nil
			}
			err = out.send(progressAPI(p, s.Door.Now()), true)
		case <-tick.C:
			err = out.comment("alive")
		case <-begin.C:
			err = out.comment("from " + strconv.FormatInt(int64(from), 10))
		}
		if err != nil {
			return err
		}
	}
}

// changes reads the store's events in a goroutine that ends with ctx. The
// store is read no faster than the client is written to.
func (s *Server) changes(ctx context.Context, from store.Rev) (<-chan store.Event, <-chan error) {
	changes, failed := make(chan store.Event), make(chan error, 1)
	seq := s.Store.Events(ctx, from)
	go func() {
		for e, err := range seq {
			if err != nil {
				failed <- err
				return
			}
			select {
			case changes <- e:
			case <-ctx.Done():
				return
			}
		}
		failed <- &errs.Error{Kind: errs.Unavailable, Msg: "the store was closed"}
	}()
	return changes, failed
}

func tooOld(err error) error {
	if !errs.Is(err, errs.Conflict) {
		return err
	}
	return &errs.Error{Kind: errs.Conflict, Field: "since", Msg: "is older than what the store remembers", Hint: "list everything again and resume from the list's ETag", Err: err}
}

// eventWriter writes server-sent events.
type eventWriter struct {
	w    *streamWriter
	kind string // only this one; empty: all
}

func (o *eventWriter) write(text string) error {
	if !o.w.begun {
		h := o.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no") // a proxy that buffered would hold events back
	}
	if err := o.w.flush.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := o.w.Write([]byte(text))
	return err
}

func (o *eventWriter) comment(text string) error { return o.write(": " + text + "\n\n") }

func (o *eventWriter) send(e api.Event, wanted bool) error {
	if !wanted || o.kind != "" && e.Kind != o.kind {
		return nil
	}
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	var b strings.Builder
	if e.Rev > 0 {
		fmt.Fprintf(&b, "id: %d\n", e.Rev)
	}
	fmt.Fprintf(&b, "data: %s\n\n", text)
	return o.write(b.String())
}

// eventAPI shows a change as GET would show the record now, which may be later
// than the change: its own event follows. What is not public is left out.
func (s *Server) eventAPI(e store.Event) (api.Event, bool) {
	out := api.Event{Rev: int64(e.Rev), At: e.At, Type: "changed", Kind: string(e.Kind), Name: e.Name}
	var object any
	var err error
	switch e.Kind {
	case guest.Kind:
		object, out.Message, err = s.guestEvent(e.ID)
	case image.Kind:
		object, out.Message, err = shown(s.Tables.Images, e.ID, func(r store.Record[image.Spec, image.Status]) (any, string) {
			i := imageAPI(r, nil, false)
			return i, readyWord(i.Ready, i.Problem)
		})
	case kernel.Kind:
		object, out.Message, err = shown(s.Tables.Kernels, e.ID, func(r store.Record[kernel.Spec, kernel.Status]) (any, string) {
			k := kernelAPI(r, nil)
			return k, readyWord(k.Ready, k.Problem)
		})
	case pool.Kind:
		object, out.Message, err = shown(s.Tables.Pools, e.ID, func(r store.Record[pool.Spec, pool.Status]) (any, string) {
			r2 := r
			r2.Status.Ready = false // sizes are not measured for an event
			p := s.poolAPI(context.Background(), r2, nil)
			p.Ready = r.Status.Ready
			return p, readyWord(p.Ready, p.Problem)
		})
	case network.Kind:
		object, out.Message, err = shown(s.Tables.Networks, e.ID, func(r store.Record[network.Spec, network.Status]) (any, string) {
			n := networkAPI(r, 0)
			return n, readyWord(n.Ready, n.Problem)
		})
	case forward.Kind:
		object, out.Message, err = shown(s.Tables.Forwards, e.ID, func(r store.Record[forward.Spec, forward.Status]) (any, string) {
			f := s.forwardAPI(r)
			return f, readyWord(f.Active, f.Problem)
		})
	case snapshot.Kind:
		object, out.Message, err = shown(s.Tables.Snapshots, e.ID, func(r store.Record[snapshot.Spec, snapshot.Status]) (any, string) {
			n := s.snapshotAPI(r)
			return n, readyWord(n.Ready, n.Problem)
		})
	case operation.Kind:
		object, out.Message, err = shown(s.Tables.Operations, e.ID, func(r store.Record[operation.Spec, operation.Status]) (any, string) {
			o := operationAPI(r)
			return o, o.Verb + " " + o.State
		})
	default:
		return out, false
	}
	if e.Deleted || err != nil {
		out.Type, out.Message = "deleted", "removed"
		return out, e.Deleted
	}
	out.Object, err = json.Marshal(object)
	return out, err == nil
}

func (s *Server) guestEvent(id string) (any, string, error) {
	return shown(s.Tables.Guests, id, func(r store.Record[guest.Spec, guest.Status]) (any, string) {
		g := s.guestAPI(r, s.Door.PublishOf(r.ID))
		switch {
		case g.Problem != nil:
			return g, g.Phase + ": " + g.Problem.Message
		case g.Doing != "":
			return g, g.Doing
		}
		return g, g.Phase
	})
}

func shown[S, T any](t *store.Table[S, T], id string, show func(store.Record[S, T]) (any, string)) (any, string, error) {
	r, err := t.ByID(id)
	if err != nil {
		return nil, "", err
	}
	object, message := show(r)
	return object, message, nil
}

func readyWord(ready bool, p *api.Problem) string {
	switch {
	case p != nil:
		return p.Message
	case ready:
		return "ready"
	}
	return "not ready yet"
}

func progressAPI(p operation.Progress, now time.Time) api.Event {
	return api.Event{
		At: now, Type: "progress", Kind: string(p.Subject.Kind), Name: p.Subject.Name, Message: p.Note,
		Progress: &api.Progress{Step: p.Step, Parents: p.Parents, Done: p.Done, Total: p.Total, Unit: p.Unit, Note: p.Note},
	}
}
