package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"lodge/api"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

// guest is a guest's creation request and whether it is to run.
type guest struct {
	api.GuestSpec
	Power string `json:"power,omitempty"`
}

// kindType is what a kind's document is made of.
func kindType(kind string) reflect.Type {
	switch kind {
	case "guest":
		return reflect.TypeFor[guest]()
	case "network":
		return reflect.TypeFor[api.NetworkCreate]()
	case "pool":
		return reflect.TypeFor[api.PoolCreate]()
	case "forward":
		return reflect.TypeFor[api.ForwardCreate]()
	case "image":
		return reflect.TypeFor[api.ImageBuild]()
	}
	return nil
}

// where is a document, for the words of an error.
type where struct {
	file string
	n    int // from 1
	what string
}

func (w where) bad(field, format string, args ...any) error {
	return &api.Error{Kind: api.KindInvalid, Ref: fmt.Sprintf("%s, document %d%s", w.file, w.n, w.what), Field: field, Detail: fmt.Sprintf(format, args...)}
}

// Parse reads a file of manifests. Everything that is wrong with it and can be
// seen without lodged is an error that names document and field.
func Parse(name string, r io.Reader) ([]api.Manifest, error) {
	var list []api.Manifest
	d := yaml.NewDecoder(r)
	for n := 1; ; n++ {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		at := where{file: name, n: n}
		if err != nil {
			return nil, at.bad("", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		m, err := manifestOf(at, &doc)
		if err != nil {
			return nil, err
		}
		if m != nil {
			list = append(list, *m)
		}
	}
}

// manifestOf turns one document into a manifest, or nil if it is empty.
func manifestOf(at where, doc *yaml.Node) (*api.Manifest, error) {
	if doc.Kind == yaml.DocumentNode && len(doc.Content) > 0 {
		doc = doc.Content[0]
	}
	if doc.Kind == yaml.ScalarNode && doc.Tag == "!!null" {
		return nil, nil
	}
	if doc.Kind != yaml.MappingNode {
		return nil, at.bad("", "must be fields and values, beginning with kind")
	}
	kind, rest := "", []*yaml.Node{}
	for i := 0; i+1 < len(doc.Content); i += 2 {
		switch k, v := doc.Content[i], doc.Content[i+1]; k.Value {
		case "kind":
			kind = v.Value
		case "name":
			at.what = " (" + v.Value + ")"
			fallthrough
		default:
			rest = append(rest, k, v)
		}
	}
	t := kindType(kind)
	if t == nil {
		return nil, at.bad("kind", "%q is none of guest, network, pool, forward, image", kind)
	}
	value, err := object(at, "", rest, t)
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(value)
	if err != nil {
		return nil, at.bad("", "%v", err)
	}
	into := json.NewDecoder(bytes.NewReader(spec))
	into.DisallowUnknownFields()
	if err := into.Decode(reflect.New(t).Interface()); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			// A guest's fields are embedded; that is not the writer's concern.
			return nil, at.bad(strings.TrimPrefix(e.Field, "GuestSpec."), "cannot be a %s", e.Value)
		}
		return nil, at.bad("", "%v", err)
	}
	return &api.Manifest{Kind: kind, Spec: spec}, nil
}

// object turns the fields of a mapping into those of a struct type, by the names
// the API has for them and by the shorter ones that people write.
func object(at where, prefix string, nodes []*yaml.Node, t reflect.Type) (map[string]any, error) {
	fields := fieldsOf(t)
	m := make(map[string]any, len(nodes)/2)
	for i := 0; i+1 < len(nodes); i += 2 {
		key, node := nodes[i].Value, nodes[i+1]
		name := key
		f, ok := fields[name]
		if !ok {
			name = key + "_bytes"
			f, ok = fields[name]
		}
		if !ok {
			return nil, at.bad(prefix+key, "there is no such field (line %d); there are: %s", nodes[i].Line, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		}
		if _, twice := m[name]; twice {
			return nil, at.bad(prefix+key, "is given twice")
		}
		v, err := value(at, prefix+key, name, node, f)
		if err != nil {
			return nil, err
		}
		m[name] = v
	}
	return m, nil
}

// fieldsOf is a struct's fields by their JSON names, embedded ones included.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	m := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			m[name] = f.Type
		}
	}
	return m
}

// seconds are the fields that are times.
func seconds(name string) bool { return name == "stop_timeout" || name == "delay" }

// size are the fields that are bytes, or bytes a second.
func size(name string) bool {
	return strings.HasSuffix(name, "_bytes") || strings.HasSuffix(name, "_bps")
}

// value reads one field the way its type wants it.
func value(at where, path, name string, n *yaml.Node, t reflect.Type) (any, error) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		return object(at, path+".", n.Content, t)
	case t.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		return texts(at, path, n.Content)
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, e := range n.Content {
			one, err := value(at, fmt.Sprintf("%s[%d]", path, i), "", e, t.Elem())
			if err != nil {
				return nil, err
			}
			list = append(list, one)
		}
		return list, nil
	}
	v, err := scalar(name, n, t)
	if err != nil {
		return nil, at.bad(path, "%v", err)
	}
	return v, nil
}

// texts reads a mapping of which all values are text, whatever they look like.
func texts(at where, path string, nodes []*yaml.Node) (map[string]string, error) {
	m := map[string]string{}
	for i := 0; i+1 < len(nodes); i += 2 {
		if nodes[i+1].Kind != yaml.ScalarNode {
			return nil, at.bad(path+"."+nodes[i].Value, "must be text")
		}
		m[nodes[i].Value] = nodes[i+1].Value
	}
	return m, nil
}

// scalar reads sizes, times, power and text as they are written, and the rest as
// YAML has it; a wrong type is found when the whole is decoded.
func scalar(name string, n *yaml.Node, t reflect.Type) (any, error) {
	if n.Kind == yaml.ScalarNode {
		switch {
		case size(name):
			return units.ParseBytes(n.Value)
		case seconds(name):
			return cli.ParseSeconds(n.Value)
		case name == "power":
			return power(n.Value), nil
		case t.Kind() == reflect.String && n.Tag != "!!null":
			return n.Value, nil // also what looks like a number or a date
		}
	}
	var v any
	err := n.Decode(&v)
	return v, err
}

// power reads on and off also where YAML 1.1 writers mean true and false.
func power(s string) string {
	switch s {
	case "true", "yes":
		return "on"
	case "false", "no":
		return "off"
	}
	return s
}
