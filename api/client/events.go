package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"lodge/api"
)

// EventOptions choose from the events.
type EventOptions struct {
	Since int64  // every change after this revision; 0: from now on
	Kind  string // of this kind only; empty: all
}

// Waits between tries to connect again after a stream broke.
const (
	eventBackoffMin = 100 * time.Millisecond
	eventBackoffMax = 5 * time.Second
)

// Events yields events until ctx ends or the caller stops. When the stream
// breaks it is resumed behind the last revision seen, so no change is lost or
// told twice; progress events in between are. The sequence ends with an error
// when the first connection fails, or when the server refuses (KindConflict: the
// revision is too old to resume from).
func (c *Client) Events(ctx context.Context, o EventOptions) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		at, backoff, connected := place{rev: o.Since}, eventBackoffMin, false
		for {
			resp, err := c.openEvents(ctx, o, at.rev, connected)
			if err == nil {
				connected, backoff = true, eventBackoffMin
				stop := scanEvents(resp.Body, func(e api.Event) bool { return at.known(e) || yield(e, nil) })
				resp.Body.Close()
				if stop {
					return
				}
			} else if ctx.Err() == nil && (!connected || refused(err)) {
				yield(api.Event{}, err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(backoff):
				backoff = min(2*backoff, eventBackoffMax)
			}
		}
	}
}

// place is how far a reader of events has come. One revision may have several
// events, and the server tells all of the last one's again on a resumed stream.
type place struct {
	rev  int64
	seen map[string]bool // what was told of rev
}

// known notes an event and reports whether it was noted before.
func (p *place) known(e api.Event) bool {
	if e.Type == "progress" || e.Rev == 0 {
		return false
	}
	if e.Rev > p.rev {
		p.rev, p.seen = e.Rev, map[string]bool{}
	}
	key := e.Type + " " + e.Kind + "/" + e.Name + " " + e.Message
	if e.Rev < p.rev || p.seen[key] {
		return true
	}
	if p.seen == nil { // the caller came from this revision: it is behind us
		return true
	}
	p.seen[key] = true
	return false
}

// refused reports whether the server answered, and said that asking again will
// not help.
func refused(err error) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Status >= 400 && e.Status < 500
}

func (c *Client) openEvents(ctx context.Context, o EventOptions, last int64, again bool) (*http.Response, error) {
	q := url.Values{}
	if o.Kind != "" {
		q.Set("kind", o.Kind)
	}
	h := http.Header{"Accept": {"text/event-stream"}}
	if last > 0 && !again {
		q.Set("since", strconv.FormatInt(last, 10))
	}
	if last > 0 && again {
		h.Set("Last-Event-ID", strconv.FormatInt(last, 10))
	}
	return c.send(ctx, call{method: http.MethodGet, path: route("events"), query: q, header: h})
}

// maxEvent is more than the largest record; a line beyond it breaks the stream.
const maxEvent = 4 << 20

// scanEvents reads server-sent events and reports whether the reader of events
// wants no more. It returns false at the stream's end, or at what is no event.
func scanEvents(r io.Reader, each func(api.Event) bool) bool {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 16<<10), maxEvent)
	var data []string
	var id int64
	for lines.Scan() {
		line := lines.Text()
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			e, ok := decodeEvent(data, id)
			data, id = nil, 0
			if ok && !each(e) {
				return true
			}
		case field == "data":
			data = append(data, value)
		case field == "id":
			id, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	return false
}

func decodeEvent(data []string, id int64) (api.Event, bool) {
	var e api.Event
	if len(data) == 0 || json.Unmarshal([]byte(strings.Join(data, "\n")), &e) != nil {
		return e, false
	}
	if e.Rev == 0 {
		e.Rev = id
	}
	return e, true
}
