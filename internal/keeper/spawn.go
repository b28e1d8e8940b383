package keeper

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"lodge/internal/base/errs"
)

// logFile is where a keeper's own messages go.
const logFile = "keeper.log"

// dialOrSpawn connects to the keeper of o.Dir, starting one when none answers.
func dialOrSpawn(ctx context.Context, o Options) (*net.UnixConn, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		conn, err := dial(o.Dir)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		if attempt > 0 {
			// Someone else is just starting one: the lock was taken, the
			// socket is not there yet.
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Duration(attempt) * time.Millisecond):
			}
		}
		if attempt == 20 {
			return nil, err
		}
		if err := spawn(ctx, o); err != nil {
			return nil, err
		}
	}
}

func dial(dir string) (*net.UnixConn, error) {
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(dir, Socket), Net: "unixpacket"})
}

// spawn starts a keeper in a session of its own, so that nothing that ends the
// daemon ends it, and returns when it listens or has found that another does.
func spawn(ctx context.Context, o Options) error {
	log, err := os.OpenFile(filepath.Join(o.Dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(o.Binary, "-dir", o.Dir)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{tell} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return &errs.Error{Op: "keeper.spawn", Kind: errs.Internal, Ref: o.Binary, Msg: "the keeper cannot be started", Err: err}
	}
	go func() { _ = cmd.Wait() }() // how it ended is in its log
	defer context.AfterFunc(ctx, func() { ready.Close() })()
	word, err := io.ReadAll(ready)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case string(word) != ReadyWord:
		return &errs.Error{Op: "keeper.spawn", Kind: errs.Internal, Ref: o.Binary, Msg: "the keeper ended while it started",
			Hint: "see " + filepath.Join(o.Dir, logFile)}
	}
	return nil
}

// ReadyWord is what a keeper writes to descriptor 3 when it listens, or when it
// leaves the place to another one that runs already.
const ReadyWord = "ready\n"

// Version returns the hash of the running keeper's program.
func (c *Client) Version(ctx context.Context) (string, error) {
	r, err := c.again(ctx, Message{Op: OpVersion})
	return r.Version, err
}

// BinaryVersion returns the hash that Version would return of a keeper started
// from path.
func BinaryVersion(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// Upgrade replaces the keeper's program by binary without ending a program or
// losing an exit: the process stays the same. It does nothing when it is that
// program already. When binary cannot run, the keeper goes on as it was.
func (c *Client) Upgrade(ctx context.Context, binary string) error {
	want, err := BinaryVersion(binary)
	if err != nil {
		return err
	}
	is, err := c.Version(ctx)
	if err != nil || is == want {
		return err
	}
	l, err := c.connected(ctx)
	if err != nil {
		return err
	}
	if _, err := l.call(ctx, Message{Op: OpUpgrade, Binary: binary}); !errors.Is(err, errLost) {
		return err
	}
	if err := c.past(ctx, l); err != nil {
		return err
	}
	if is, err = c.Version(ctx); err != nil {
		return err
	}
	if is != want {
		return &errs.Error{Op: "keeper.upgrade", Kind: errs.Internal, Ref: binary, Msg: fmt.Sprintf("the keeper is at version %s after an upgrade to %s", is, want)}
	}
	return nil
}

// Shutdown ends the keeper and closes the client. It fails with errs.Conflict
// while a program runs.
func (c *Client) Shutdown(ctx context.Context) error {
	for {
		l, err := c.connected(ctx)
		if err != nil {
			return err
		}
		c.setLeaving(true)
		_, err = l.call(ctx, Message{Op: OpShutdown})
		if err == nil {
			return c.Close()
		}
		c.setLeaving(false)
		if !errors.Is(err, errLost) {
			return err
		}
		if err := c.past(ctx, l); err != nil {
			return err
		}
		go c.reconnect() // it was lost before it could end
	}
}

func (c *Client) setLeaving(leaving bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = leaving
}
