package oslevel

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	accounts "lodge/internal/base/account"
	"lodge/internal/base/errs"
)

// Pack writes a file or tree of the guest as a tar stream. The agent does it
// inside the guest's namespaces, where no link leads to the host.
func (m *Machine) Pack(ctx context.Context, file string, w io.Writer) error {
	if err := absolute(file); err != nil {
		return err
	}
	return m.carry(ctx, "path", []string{"files", "pack", file}, nil, w)
}

// Unpack makes what the tar stream r holds below the guest's dir.
func (m *Machine) Unpack(ctx context.Context, dir string, r io.Reader) error {
	if err := absolute(dir); err != nil {
		return err
	}
	return m.carry(ctx, "path", []string{"files", "unpack", dir}, r, nil)
}

func absolute(where string) error {
	if !path.IsAbs(where) {
		return errs.Bad("path", fmt.Sprintf("%q is not an absolute path", where), "start it with /")
	}
	return nil
}

// SetPassword gives a user of the guest a new password. Its hash goes in by the
// agent's input, where no process list shows it.
func (m *Machine) SetPassword(ctx context.Context, user, password string) error {
	if err := accounts.CheckUser(user); err != nil {
		return err
	}
	hash, err := accounts.HashPassword(password)
	if err != nil {
		return err
	}
	return m.carry(ctx, "user", []string{"login", "password", user}, strings.NewReader(hash), nil)
}

// Authorize lets who has one of the keys log in as a user of the guest.
func (m *Machine) Authorize(ctx context.Context, user string, keys []string) error {
	if err := cmp.Or(accounts.CheckUser(user), accounts.CheckKeys(keys)); err != nil {
		return err
	}
	return m.carry(ctx, "user", []string{"login", "keys", user}, strings.NewReader(strings.Join(keys, "\n")), nil)
}

// remarkMax is how much of the agent's complaints is kept, in bytes.
const remarkMax = 4096

// carry runs the agent as the guest's root with one end of the stream. What it
// complains of is the fault of field.
func (m *Machine) carry(ctx context.Context, field string, args []string, from io.Reader, to io.Writer) error {
	x := entry{argv: append([]string{"lodge-agent"}, args...), env: environment(m.g), dir: "/", must: true, agent: m.e.o.Agent}
	theirs, ours, err := os.Pipe() // the agent's input
	if err != nil {
		return err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return errors.Join(err, theirs.Close(), ours.Close())
	}
	remarks, theirRemarks, err := os.Pipe()
	if err != nil {
		return errors.Join(err, theirs.Close(), ours.Close(), out.Close(), theirOut.Close())
	}
	defer ours.Close()
	defer out.Close()
	defer remarks.Close()
	p, err := m.enter(ctx, x, theirs, theirOut, theirRemarks)
	theirs.Close()
	theirOut.Close()
	theirRemarks.Close()
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- feed(ours, from) }()
	said := make(chan string, 1)
	go func() { said <- listen(remarks) }()
	if to == nil {
		to = io.Discard
	}
	_, failed := io.Copy(to, out)
	if failed != nil {
		out.Close() // the agent sees that nobody reads and ends
	}
	status, err := p.Wait(ctx)
	ours.Close() // a feeder that still waits for the agent to read sees that it is gone
	switch remark := <-said; {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case status != 0: // who feeds it may be waiting for bytes that never come
		return complaint(status, remark, field)
	}
	return <-sent
}

// feed gives the agent its input, and the end of it.
func feed(w *os.File, from io.Reader) error {
	defer w.Close()
	if from == nil {
		return nil
	}
	_, err := io.Copy(w, from)
	return err
}

// listen keeps the beginning of what the agent complains of and drops the rest.
func listen(r io.Reader) string {
	var b bytes.Buffer
	_, _ = io.Copy(&b, io.LimitReader(r, remarkMax))
	_, _ = io.Copy(io.Discard, r)
	return strings.TrimSpace(b.String())
}

// agentNotFound is the agent's exit status when the path is not there.
const agentNotFound = 3

// complaint turns how the agent ended, and its one line, into an error.
func complaint(status int, remark, field string) error {
	kind := errs.Invalid
	switch {
	case status == agentNotFound:
		kind = errs.NotFound
	case status > signalled:
		kind = errs.Conflict // the guest ended, or its memory did
	case strings.HasSuffix(remark, "no space left on device"), strings.HasSuffix(remark, "disk quota exceeded"):
		kind = errs.NoSpace
	}
	hint := ""
	if field == "user" && kind == errs.NotFound {
		hint = "add the user in the guest first"
	}
	return &errs.Error{Op: "oslevel.files", Kind: kind, Field: field, Hint: hint, Msg: strings.TrimPrefix(remark, "lodge-agent: "),
		Err: fmt.Errorf("the agent ended with %d", status)}
}
