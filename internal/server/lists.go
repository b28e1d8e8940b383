package server

import (
	"net/http"
	"strconv"
	"strings"

	"lodge/internal/base/errs"
)

// Condition is the parameter of every list.
type Condition struct {
	IfNoneMatch string `header:"If-None-Match" doc:"ETag of the list that the caller has"`
}

type listOutput[T any] struct {
	Status int
	ETag   string `header:"ETag" doc:"revision of the store; events are resumed from it"`
	Body   []T
}

// listed answers with a list unless the caller has it. The revision is read
// before the records: events since then may tell again what the list shows,
// and never leave anything out.
func listed[T any](s *Server, c Condition, build func() []T) *listOutput[T] {
	tag := strconv.Quote(strconv.FormatInt(int64(s.Store.Rev()), 10))
	if matches(c.IfNoneMatch, tag) {
		return &listOutput[T]{Status: http.StatusNotModified, ETag: tag}
	}
	return &listOutput[T]{Status: http.StatusOK, ETag: tag, Body: build()}
}

func matches(header, tag string) bool {
	for t := range strings.SplitSeq(header, ",") {
		if t = strings.TrimSpace(t); t == tag || t == "*" || t == "W/"+tag {
			return true
		}
	}
	return false
}

// labelFilter reads label=key=value and label=key.
func labelFilter(wanted []string) (func(map[string]string) bool, error) {
	type pair struct {
		key, value string
		any        bool
	}
	var pairs []pair
	for _, w := range wanted {
		k, v, found := strings.Cut(w, "=")
		if k == "" {
			return nil, errs.Bad("label", strconv.Quote(w)+" names no label", "write it as key=value or key")
		}
		pairs = append(pairs, pair{k, v, !found})
	}
	return func(labels map[string]string) bool {
		for _, p := range pairs {
			if v, ok := labels[p.key]; !ok || !p.any && v != p.value {
				return false
			}
		}
		return true
	}, nil
}

func orEmpty[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}
