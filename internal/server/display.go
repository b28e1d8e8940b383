package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/base/errs"
)

// Screens is what can be done with a running guest that has a screen, by its
// id, and with one that hangs. Errors are as with Live.
type Screens interface {
	// Screenshot writes a PNG file.
	Screenshot(ctx context.Context, id string, w io.Writer) error
	// SendKeys presses the keys of each chord together.
	SendKeys(ctx context.Context, id string, chords [][]string) error
	// Display connects by the RFB protocol.
	Display(ctx context.Context, id string) (io.ReadWriteCloser, error)
	// Debug does one of what the guest's engine offers.
	Debug(ctx context.Context, id, what string, w io.Writer) error
}

// Bounds of what is pressed at once.
const (
	maxChords = 256
	maxChord  = 8
)

func (s *Server) displayRoutes() {
	const one = "/v1/guests/{name}/"
	stream(s, huma.Operation{
		OperationID: "screenshot", Method: http.MethodGet, Path: one + "screenshot", Summary: "The screen of a guest as a picture",
		Responses: map[string]*huma.Response{"200": streamAnswer("The screen", "image/png")},
	}, s.screenshot)
	register(s, huma.Operation{OperationID: "send-keys", Method: http.MethodPost, Path: one + "keys", Summary: "Press keys of a guest", DefaultStatus: http.StatusNoContent}, s.sendKeys)
	register(s, huma.Operation{
		OperationID: "display-ticket", Method: http.MethodPost, Path: one + "display", Summary: "Get a ticket for the screen of a guest",
		Description: "It is good for one connection within 30 seconds, also without a token.",
	}, s.displayTicket)
	stream(s, huma.Operation{
		OperationID: displayRoute, Method: http.MethodGet, Path: one + "display", Summary: "See the screen of a guest (websocket)",
		Description: "Binary messages carry the RFB protocol (RFC 6143) as it is.",
		Responses:   map[string]*huma.Response{"101": {Description: "The websocket"}}, DefaultStatus: http.StatusSwitchingProtocols,
	}, s.display)
	stream(s, huma.Operation{
		OperationID: "debug-guest", Method: http.MethodPost, Path: one + "debug", Summary: "Look into a guest that hangs, or shake it",
		Description: "What can be done is among the debugs of the guest's engine.",
		Responses:   map[string]*huma.Response{"200": streamAnswer("What was found", "text/plain")},
	}, s.debugGuest)
}

const displayRoute = "display"

// ticketed reports whether a request shows a ticket instead of a token. Whether
// it is good is for the route to say.
func ticketed(r *http.Request) bool {
	// As it was written: an escaped slash is part of a name to the routes.
	its, _ := path.Match("/v1/guests/*/"+displayRoute, r.URL.EscapedPath()) // the pattern is a good one
	return its && r.Method == http.MethodGet && r.URL.Query().Get("ticket") != ""
}

func (s *Server) screenshot(ctx context.Context, in *GuestName, w *streamWriter, _ *http.Request) error {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return err
	}
	var picture bytes.Buffer // whole or not at all
	if err := s.Screens.Screenshot(ctx, g.ID, &picture); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "image/png")
	_, err = w.Write(picture.Bytes())
	return err
}

type keysInput struct {
	GuestName
	Body api.Keys
}

func (s *Server) sendKeys(ctx context.Context, in *keysInput) (*struct{}, error) {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	if len(in.Body.Chords) == 0 || len(in.Body.Chords) > maxChords {
		return nil, errs.Bad("chords", "there are none, or too many", "give 1 to 256, such as [[\"ctrl\",\"alt\",\"delete\"]]")
	}
	for _, keys := range in.Body.Chords {
		if len(keys) == 0 || len(keys) > maxChord {
			return nil, errs.Bad("chords", "one has no keys, or too many", "hold 1 to 8 keys together")
		}
	}
	return nil, s.Screens.SendKeys(ctx, g.ID, in.Body.Chords)
}

type ticketOutput struct{ Body api.DisplayTicket }

func (s *Server) displayTicket(_ context.Context, in *GuestName) (*ticketOutput, error) {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	text, expires, err := s.tickets.issue(g.ID)
	if err != nil {
		return nil, err
	}
	return &ticketOutput{Body: api.DisplayTicket{Ticket: text, Expires: expires}}, nil
}

type displayInput struct {
	GuestName
	Ticket string `query:"ticket" required:"true" doc:"that was asked for, once" maxLength:"100"`
}

func (s *Server) display(ctx context.Context, in *displayInput, w *streamWriter, r *http.Request) error {
	// Whoever has no ticket does not even learn which guests there are.
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil || !s.tickets.redeem(in.Ticket, g.ID) {
		return &errs.Error{Kind: errs.Denied, Field: "ticket", Msg: "is not good, or no more", Hint: "ask for one and use it within 30 seconds, once"}
	}
	screen, err := s.Screens.Display(ctx, g.ID)
	if err != nil {
		return err
	}
	defer screen.Close()
	c, err := upgrade(w, r)
	if err != nil {
		return err
	}
	defer c.CloseNow()
	pump(ctx, c, screen)
	c.Close(websocket.StatusNormalClosure, "")
	return nil
}

// pump carries bytes both ways until either side ends.
func pump(ctx context.Context, c *websocket.Conn, screen io.ReadWriteCloser) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { screen.Close() })
	defer stop()
	wire := &wireConn{conn: c, ctx: ctx}
	go wire.watch(cancel)
	go func() {
		defer cancel()
		buf := make([]byte, chunk)
		for {
			n, err := screen.Read(buf)
			if n > 0 && c.Write(ctx, websocket.MessageBinary, buf[:n]) != nil || err != nil {
				return
			}
		}
	}()
	for {
		kind, p, err := c.Read(ctx)
		if err != nil || kind != websocket.MessageBinary {
			return
		}
		if _, err := screen.Write(p); err != nil {
			return
		}
	}
}

type debugInput struct {
	GuestName
	What string `query:"what" required:"true" doc:"one of the engine's debugs" example:"sysrq-t"`
}

func (s *Server) debugGuest(ctx context.Context, in *debugInput, w *streamWriter, _ *http.Request) error {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	err = s.Screens.Debug(ctx, g.ID, in.What, w)
	if err != nil && !w.begun {
		w.Header().Del("Content-Type")
	}
	if err == nil && !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
