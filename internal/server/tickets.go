package server

import (
	"crypto/rand"
	"sync"
	"time"

	"lodge/internal/base/errs"
)

const (
	ticketLife = 30 * time.Second
	maxTickets = 1000 // that wait to be shown; far more than people who look
)

// tickets lets those see a guest's screen who cannot show a token, as browsers'
// websockets cannot: whoever may ask for one gets it, and shows it once, soon.
type tickets struct {
	now func() time.Time

	mu  sync.Mutex
	all map[string]ticket
}

type ticket struct {
	guest   string // id
	expires time.Time
}

func newTickets(now func() time.Time) *tickets {
	return &tickets{now: now, all: map[string]ticket{}}
}

// issue makes a ticket for the screen of the guest with id.
func (t *tickets) issue(id string) (text string, expires time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for text, k := range t.all {
		if now.After(k.expires) {
			delete(t.all, text)
		}
	}
	if len(t.all) >= maxTickets {
		return "", time.Time{}, &errs.Error{Kind: errs.Busy, Msg: "too many tickets wait to be shown", Hint: "try again in half a minute"}
	}
	text, expires = rand.Text(), now.Add(ticketLife)
	t.all[text] = ticket{id, expires}
	return text, expires, nil
}

// redeem reports whether text is a ticket for the guest with id. It is none from
// then on.
func (t *tickets) redeem(text, id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.all[text]
	if !ok || k.guest != id {
		return false
	}
	delete(t.all, text)
	return !t.now().After(k.expires)
}
