package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/api"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// farewell is how long answers under way may take when the server stops.
	// Streams are broken off at once.
	farewell = 5 * time.Second
	// group's members may use the socket beside root.
	group = "lodge"
)

// Serve answers on listeners until ctx ends, then lets what is under way end
// for a short while. A Unix socket needs no token: its peers are checked. All
// others must carry TLS already and ask for the token.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	streams, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	failed := make(chan error, len(listeners))
	var servers []*http.Server
	for _, l := range listeners {
		h := &http.Server{
			Handler: s.guarded(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
			ErrorLog:    slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
			BaseContext: func(net.Listener) context.Context { return streams },
		}
		if l.Addr().Network() == "unix" {
			h.Handler, l = s, &peers{Listener: l, allowed: s.letIn}
		}
		servers = append(servers, h)
		go func() {
			if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	var ending sync.WaitGroup
	for _, h := range servers {
		ending.Go(func() {
			if h.Shutdown(limit) != nil {
				h.Close()
			}
		})
	}
	ending.Wait()
	return err
}

// guarded asks for the token, unless a ticket stands in for it. Hashes are compared, so that the time it takes
// tells nothing of the token, nor of its length.
func (s *Server) guarded() http.Handler {
	want := sha256.Sum256([]byte(s.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(token))
		if ticketed(r) {
			s.ServeHTTP(w, r)
			return
		}
		if !found || s.Token == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			(&problem{body: api.Error{
				Status: http.StatusUnauthorized, Kind: api.KindDenied, Detail: "this address asks for a token",
				Hint: "set LODGE_TOKEN to the token that lodged made: it lies in its data directory",
			}}).write(w)
			return
		}
		s.ServeHTTP(w, r)
	})
}

// peers lets only those processes connect that allowed lets in. The socket's
// mode says the same already; this holds even when somebody loosens it.
type peers struct {
	net.Listener
	allowed func(*unix.Ucred) bool
}

// Accept returns the next connection that is let in.
func (p *peers) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if cred, err := peerOf(c); err == nil && p.allowed(cred) {
			return c, nil
		}
		c.Close()
	}
}

func peerOf(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var found error
	if err := raw.Control(func(fd uintptr) {
		cred, found = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, found
}

// letIn admits root and the members of the group.
func (s *Server) letIn(c *unix.Ucred) bool {
	if c.Uid == 0 {
		return true
	}
	ok := member(c)
	if !ok {
		s.Log.Warn("a process may not use the socket", "uid", c.Uid, "pid", c.Pid)
	}
	return ok
}

func member(c *unix.Ucred) bool {
	g, err := user.LookupGroup(group)
	if err != nil {
		return false
	}
	if g.Gid == strconv.FormatUint(uint64(c.Gid), 10) {
		return true
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(c.Uid), 10))
	if err != nil {
		return false
	}
	all, err := u.GroupIds()
	return err == nil && slices.Contains(all, g.Gid)
}
