package clitest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"lodge/api"
)

type wire struct {
	ctx  context.Context
	conn *websocket.Conn
}

func (w wire) send(f api.Frame, p []byte) {
	w.conn.Write(w.ctx, websocket.MessageBinary, append([]byte{f}, p...))
}

func (w wire) print(format string, args ...any) {
	w.send(api.FrameOut, fmt.Appendf(nil, format, args...))
}

func (w wire) exit(code int) {
	b, _ := json.Marshal(api.Control{Exit: &code})
	w.send(api.FrameControl, b)
	w.conn.Close(websocket.StatusNormalClosure, "")
}

// next returns the next frame, or false when the client has gone.
func (w wire) next() (api.Frame, []byte, bool) {
	_, p, err := w.conn.Read(w.ctx)
	if err != nil || len(p) == 0 {
		return 0, nil, false
	}
	return p[0], p[1:], true
}

// exec knows a few programs: echo, cat, fail, env, size, trap and watch.
func (s *Server) exec(hw http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	if g.Phase != "running" {
		return &api.Error{Kind: api.KindConflict, Ref: "guest/" + g.Name, Detail: "is not running", Hint: "lodge start " + g.Name}
	}
	conn, err := websocket.Accept(hw, r, nil)
	if err != nil {
		return nil // it has answered
	}
	defer conn.CloseNow()
	w := wire{r.Context(), conn}
	var ask api.ExecRequest
	if _, p, err := conn.Read(r.Context()); err != nil || json.Unmarshal(p, &ask) != nil {
		return nil
	}
	args := ask.Command[1:]
	switch ask.Command[0] {
	case "echo":
		w.print("%s\n", strings.Join(args, " "))
	case "cat":
		for {
			f, p, ok := w.next()
			if !ok || f == api.FrameIn && len(p) == 0 {
				break
			}
			if f == api.FrameIn {
				w.print("%s", p)
			}
		}
	case "fail":
		w.send(api.FrameErr, []byte("no luck\n"))
		code, _ := strconv.Atoi(args[0])
		w.exit(code)
		return nil
	case "env":
		w.print("user=%s cwd=%s env=%s tty=%v\n", ask.User, ask.Cwd, strings.Join(ask.Env, ","), ask.TTY)
	case "size":
		w.print("%dx%d\r\n", ask.Rows, ask.Cols)
	case "trap", "watch":
		w.trap(ask.Command[0] == "watch")
	default:
		b, _ := json.Marshal(api.Control{Error: &api.Error{Kind: api.KindNotFound, Ref: ask.Command[0], Detail: "there is no such program in the guest"}})
		w.send(api.FrameControl, b)
		return nil
	}
	w.exit(0)
	return nil
}

// trap says that it is ready, and which signal came; or which window size.
func (w wire) trap(size bool) {
	w.print("ready\n")
	for {
		f, p, ok := w.next()
		if !ok {
			return
		}
		var c api.Control
		if f != api.FrameControl || json.Unmarshal(p, &c) != nil {
			continue
		}
		if c.Resize != nil && size {
			w.print("resized %dx%d\n", c.Resize.Rows, c.Resize.Cols)
			return
		}
		if c.Signal != "" && !size {
			w.print("got %s\n", c.Signal)
			return
		}
	}
}

// console greets and echoes until the client goes.
func (s *Server) console(hw http.ResponseWriter, r *http.Request) error {
	if _, err := s.guest(r); err != nil {
		return err
	}
	conn, err := websocket.Accept(hw, r, nil)
	if err != nil {
		return nil
	}
	defer conn.CloseNow()
	w := wire{r.Context(), conn}
	w.print("login: ")
	for {
		f, p, ok := w.next()
		if !ok {
			return nil
		}
		if f == api.FrameIn {
			w.print("<%s>", p)
		}
	}
}

// entry is a file of a guest.
type entry struct {
	header tar.Header
	data   []byte
}

// hostileTar is a tar that wants out: the way is the last part of the path.
func hostileTar(w io.Writer, way string) error {
	t := tar.NewWriter(w)
	dir := func(name string) { t.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}) }
	file := func(name string) {
		t.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o4755, Size: 4})
		t.Write([]byte("evil"))
	}
	dir(way + "/")
	switch way {
	case "dotdot":
		file("dotdot/../../escaped")
	case "absolute":
		file("/tmp/lodge-escaped")
	case "symlink":
		t.WriteHeader(&tar.Header{Name: "symlink/out", Typeflag: tar.TypeSymlink, Linkname: "../..", Mode: 0o777})
		file("symlink/out/escaped")
	case "hardlink":
		t.WriteHeader(&tar.Header{Name: "hardlink/out", Typeflag: tar.TypeLink, Linkname: "../secret"})
	case "device":
		t.WriteHeader(&tar.Header{Name: "device/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666})
		file("device/setuid")
	case "zeros":
		const size = 32 << 20
		t.WriteHeader(&tar.Header{Name: "zeros/big", Typeflag: tar.TypeReg, Mode: 0o644, Size: size})
		block := make([]byte, 1<<20)
		for range size >> 20 {
			if _, err := t.Write(block); err != nil {
				return err
			}
		}
	}
	return t.Close()
}

func (s *Server) getFiles(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	p := r.URL.Query().Get("path")
	if way, ok := strings.CutPrefix(p, "/hostile/"); ok {
		hostileTar(w, way)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.tree(g.Name)
	if _, ok := files[p]; !ok {
		return missing("file", p)
	}
	var names []string
	for n := range files {
		if n == p || strings.HasPrefix(n, strings.TrimSuffix(p, "/")+"/") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	t := tar.NewWriter(w)
	for _, n := range names {
		e := files[n]
		h := e.header
		h.Name = path.Join(path.Base(p), strings.TrimPrefix(n, p))
		if err := t.WriteHeader(&h); err != nil {
			return err
		}
		t.Write(e.data)
	}
	return t.Close()
}

// tree is a guest's files; a new one has a few directories.
func (s *Server) tree(guest string) map[string]entry {
	if s.files[guest] == nil {
		m := map[string]entry{}
		for _, d := range []string{"/", "/etc", "/srv"} {
			m[d] = entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1e9, 0)}}
		}
		m["/etc/hostname"] = entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(guest) + 1), Uid: 7, Gid: 8, ModTime: time.Unix(1e9, 0)}, data: []byte(guest + "\n")}
		m["/etc/link"] = entry{header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc/hostname", Mode: 0o777}}
		s.files[guest] = m
	}
	return s.files[guest]
}

func (s *Server) putFiles(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	dir := r.URL.Query().Get("path")
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.tree(g.Name)
	if _, ok := files[dir]; !ok {
		return missing("file", dir)
	}
	t := tar.NewReader(r.Body)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		if err != nil {
			return &api.Error{Kind: api.KindInvalid, Detail: "not a tar: " + err.Error()}
		}
		var b bytes.Buffer
		if _, err := io.Copy(&b, t); err != nil {
			return err
		}
		e := entry{header: *h, data: b.Bytes()}
		if h.Typeflag == tar.TypeLink {
			e = files[path.Join(dir, h.Linkname)]
		}
		files[path.Join(dir, h.Name)] = e
	}
}
