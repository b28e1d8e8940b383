package clitest

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/coder/websocket"

	"lodge/api"
)

// hall is the engines of the false host: one runs, one is not installed.
var hall = []api.Engine{
	{Name: "oslevel", Model: "os", Version: "Linux 6.18", Usable: true, Can: map[string]bool{"exec": true, "files": true, "screen": false}, Form: "tree"},
	{
		Name: "box", Model: "vm", Version: "Box 1.0", Usable: true, Can: map[string]bool{"exec": true, "screen": true}, Form: "volume", Kernel: "linux",
		Machines: []api.MachineKind{{Name: "full", Firmware: []string{"bios", "uefi"}, TPM: true}, {Name: "micro"}}, CPUModels: []string{"max", "plain"},
		Debugs: []string{"nmi", "stack"}, Facts: []api.Fact{{Name: "acceleration", Value: "tcg: slow"}}, Overhead: 64 << 20,
	},
	{Name: "port", Model: "paravirt", Missing: "it is not installed", Hint: "apt-get install port", Can: map[string]bool{}},
}

func (s *Server) engines(w http.ResponseWriter, _ *http.Request) error { return reply(w, 200, hall) }

func (s *Server) engine(w http.ResponseWriter, r *http.Request) error {
	for _, e := range hall {
		if e.Name == r.PathValue("name") {
			return reply(w, 200, e)
		}
	}
	return missing("engine", r.PathValue("name"))
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	return reply(w, 200, api.Explanation{Name: g.Name, Phase: g.Phase, Goal: g.Phase, Seen: g.Phase + " on engine box", Wanted: g.Phase, Next: "nothing: it is where it should be", Problem: g.Problem, Pending: g.Pending})
}

func (s *Server) screenshot(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	if g.Model == "os" {
		return &api.Error{Kind: api.KindUnsupported, Ref: "guest/" + g.Name, Detail: "its engine cannot show a screen", Hint: "lodge engine ls"}
	}
	_, err = io.WriteString(w, "\x89PNG\n")
	return err
}

func (s *Server) keys(w http.ResponseWriter, r *http.Request) error {
	var k api.Keys
	if err := decode(r, &k); err != nil {
		return err
	}
	for _, chord := range k.Chords {
		for _, key := range chord {
			if key == "" {
				return &api.Error{Kind: api.KindInvalid, Field: "chords", Detail: "one has an empty key"}
			}
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) ticket(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	return reply(w, 200, api.DisplayTicket{Ticket: "for-" + g.Name})
}

// display greets as a VNC server does and echoes.
func (s *Server) display(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	if r.URL.Query().Get("ticket") != "for-"+g.Name {
		return &api.Error{Kind: api.KindDenied, Field: "ticket", Detail: "is not good"}
	}
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return nil
	}
	defer c.CloseNow()
	conn := websocket.NetConn(r.Context(), c, websocket.MessageBinary)
	io.WriteString(conn, "RFB 003.008\n")
	io.Copy(conn, conn)
	return nil
}

func (s *Server) debug(w http.ResponseWriter, r *http.Request) error {
	if what := r.URL.Query().Get("what"); what != "stack" {
		return &api.Error{Kind: api.KindInvalid, Field: "what", Detail: fmt.Sprintf("engine box knows no %q", what), Hint: "use one of: nmi, stack"}
	}
	_, err := io.WriteString(w, "task \x1b[2Jinit\n\n")
	return err
}

// password takes root's.
func (s *Server) password(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	var p api.Password
	if err := decode(r, &p); err != nil {
		return err
	}
	if p.User != "root" {
		return &api.Error{Kind: api.KindNotFound, Field: "user", Detail: fmt.Sprintf("the guest has no user %q with a password", p.User), Hint: "add the user first"}
	}
	s.note(g, "password", p.Password)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) authorize(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	var k api.AuthorizedKeys
	if err := decode(r, &k); err != nil {
		return err
	}
	if len(k.Keys) == 0 {
		return &api.Error{Kind: api.KindInvalid, Field: "keys", Detail: "there are none, or too many", Hint: "give 1 to 64 at a time"}
	}
	s.note(g, "keys", strings.Join(k.Keys, "+"))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// note remembers what came for a guest where a test finds it: as a label.
func (s *Server) note(g *api.Guest, what, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.Labels = map[string]string{what: value}
}

// trim finds the same in every guest that has a disk of its own.
func (s *Server) trim(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	if g.Model == "os" {
		return &api.Error{Kind: api.KindUnsupported, Ref: "guest/" + g.Name, Detail: "has nothing to trim", Hint: "its files lie on the pool itself"}
	}
	return reply(w, 200, api.Trimmed{Bytes: 3 << 20})
}

func (s *Server) clock(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	if g.Model == "os" {
		return &api.Error{Kind: api.KindUnsupported, Ref: "guest/" + g.Name, Detail: "has no clock of its own", Hint: "it shows the host's"}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
