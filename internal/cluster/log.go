package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge returns a logger for etcd that writes its warnings and errors to log.
func bridge(log *slog.Logger, last *lastWords) *zap.Logger {
	return zap.New(&core{log: log.With("part", "etcd"), last: last}, zap.WithFatalHook(last))
}

// core is a zapcore.Core over slog.
type core struct {
	log  *slog.Logger
	last *lastWords
}

// Enabled leaves out what etcd tells of its everyday life.
func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

// With returns a core that adds fields to every entry.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{log: c.log.With(attrs(fields)...), last: c.last}
}

// Check adds the core to the entry if it writes its level.
func (c *core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !everyday(e.Message) {
		return checked.AddCore(e, c)
	}
	return checked
}

// everyday reports whether a warning of etcd's is about a server that others
// connect to, or about a new and empty one.
func everyday(msg string) bool {
	switch msg {
	case "Running http and grpc server on single port. This is not recommended for production.",
		"simple token is not cryptographically signed",
		"Failed to detect schema version",
		"failed to update storage version":
		return true
	}
	return false
}

// Write passes an entry on.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
		c.last.note(e.Message, fields)
	}
	c.log.Log(context.Background(), level, e.Message, attrs(fields)...)
	return nil
}

// Sync has nothing to do: slog does not buffer.
func (c *core) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	var all []any
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			all = append(all, slog.Any(f.Key, v))
		}
	}
	return all
}

// lastWords is the latest error that etcd told. What etcd can't go on with it
// turns into a panic that says why: while starting that becomes the error of
// Start, afterwards it ends the process, as a server that is unsure of its
// records must.
type lastWords struct{ said atomic.Pointer[string] }

func (l *lastWords) note(msg string, fields []zapcore.Field) {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			msg = fmt.Sprintf("%s: %v", msg, err)
		}
	}
	l.said.Store(&msg)
}

// get returns "" when there was no error.
func (l *lastWords) get() string {
	if p := l.said.Load(); p != nil {
		return *p
	}
	return ""
}

// OnWrite is called after an entry of the fatal level was written.
func (l *lastWords) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) { panic("etcd: " + l.get()) }
