package engine

import (
	"context"
	"fmt"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
)

// Set is the engines of a host; of those that run the same model, the preferred
// first.
type Set []Engine

// look asks e what it can do. What it could not find out keeps it from running.
func look(ctx context.Context, e Engine) Info {
	i, err := e.Info(ctx)
	if err != nil {
		i.Missing = err.Error()
	}
	return i
}

// Infos tells of each engine what it can do here.
func (s Set) Infos(ctx context.Context) []Info {
	all := make([]Info, len(s))
	for i, e := range s {
		all[i] = look(ctx, e)
	}
	return all
}

// Probe tells as Infos does, after a new look.
func (s Set) Probe(ctx context.Context) []Info {
	for _, e := range s {
		if p, ok := e.(Prober); ok {
			p.Forget()
		}
	}
	return s.Infos(ctx)
}

// Find returns the engine called name, whether or not it can run here.
func (s Set) Find(ctx context.Context, name string) (Engine, Info, error) {
	var names []string
	for _, e := range s {
		i := look(ctx, e)
		if i.Name == name {
			return e, i, nil
		}
		names = append(names, i.Name)
	}
	return nil, Info{}, &errs.Error{Kind: errs.NotFound, Ref: "engine/" + name, Field: "engine",
		Msg: "there is no such engine", Hint: "use one of: " + strings.Join(names, ", ")}
}

// Pick returns the engine that guests of a model run on: the one called name,
// or if that is empty the first for the model that can run here.
func (s Set) Pick(ctx context.Context, m guest.Model, name string) (Engine, Info, error) {
	if name != "" {
		return s.pickNamed(ctx, m, name)
	}
	var first *Info
	for _, e := range s {
		i := look(ctx, e)
		switch {
		case i.Model != m:
		case i.Missing == "":
			return e, i, nil
		case first == nil:
			first = &i
		}
	}
	if first == nil {
		return nil, Info{}, &errs.Error{Kind: errs.Unsupported, Field: "model", Msg: fmt.Sprintf("this host has no engine for guests of model %s", m), Hint: "lodge engine ls"}
	}
	return nil, *first, &errs.Error{Kind: errs.Unsupported, Field: "model", Msg: fmt.Sprintf("%s cannot run here: %s", m, first.Missing), Hint: first.Hint}
}

func (s Set) pickNamed(ctx context.Context, m guest.Model, name string) (Engine, Info, error) {
	e, i, err := s.Find(ctx, name)
	switch {
	case err != nil:
		return nil, i, errs.Bad("engine", fmt.Sprintf("there is no engine %q", name), "see lodge engine ls")
	case i.Model != m:
		return nil, i, errs.Bad("engine", fmt.Sprintf("%s runs guests of model %s, not %s", name, i.Model, m), "leave the engine out, or use --model "+string(i.Model))
	case i.Missing != "":
		return nil, i, &errs.Error{Kind: errs.Unsupported, Field: "engine", Msg: fmt.Sprintf("%s cannot run here: %s", name, i.Missing), Hint: i.Hint}
	}
	return e, i, nil
}
