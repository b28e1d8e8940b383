package oslevel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"lodge/internal/base/errs"
)

// Pack writes a file or tree of the guest as a tar stream. The agent does it
// inside the guest's namespaces, where no link leads to the host.
func (m *Machine) Pack(ctx context.Context, file string, w io.Writer) error {
	return m.carry(ctx, []string{"files", "pack"}, file, nil, w)
}

// Unpack makes what the tar stream r holds below the guest's dir.
func (m *Machine) Unpack(ctx context.Context, dir string, r io.Reader) error {
	return m.carry(ctx, []string{"files", "unpack"}, dir, r, nil)
}

// remarkMax is how much of the agent's complaints is kept, in bytes.
const remarkMax = 4096

// carry runs the agent as the guest's root with one end of the stream.
func (m *Machine) carry(ctx context.Context, verb []string, where string, from io.Reader, to io.Writer) error {
	if !path.IsAbs(where) {
		return errs.Bad("path", fmt.Sprintf("%q is not an absolute path", where), "start it with /")
	}
	x := entry{argv: append([]string{"lodge-agent"}, append(verb, where)...), env: environment(m.g), dir: "/", must: true, agent: m.e.o.Agent}
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
		return complaint(status, remark)
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
func complaint(status int, remark string) error {
	kind := errs.Invalid
	switch {
	case status == agentNotFound:
		kind = errs.NotFound
	case status > signalled:
		kind = errs.Conflict // the guest ended, or its memory did
	case strings.HasSuffix(remark, "no space left on device"), strings.HasSuffix(remark, "disk quota exceeded"):
		kind = errs.NoSpace
	}
	return &errs.Error{Op: "oslevel.files", Kind: kind, Field: "path", Msg: strings.TrimPrefix(remark, "lodge-agent: "),
		Err: fmt.Errorf("the agent ended with %d", status)}
}
