package server

import (
	"bytes"
	"context"
	"encoding/json"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"lodge/internal/admission"
)

// OpenAPI returns the description of the interface (OpenAPI 3.1), as it is
// checked in at api/openapi.json.
func OpenAPI() ([]byte, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return New(ctx, Options{Door: &admission.Door{}}).describe()
}

// describe writes the document with keys in order, so that it can be compared.
func (s *Server) describe() ([]byte, error) {
	text, err := s.api.OpenAPI().MarshalJSON()
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if c, ok := doc["components"].(map[string]any); ok {
		if schemas, ok := c["schemas"].(map[string]any); ok {
			// The library's own, which no answer of ours has.
			delete(schemas, "ErrorModel")
			delete(schemas, "ErrorDetail")
		}
	}
	paths, _ := doc["paths"].(map[string]any)
	for p, v := range paths {
		if plain := strings.ReplaceAll(p, "...}", "}"); plain != p {
			delete(paths, p)
			paths[plain] = v
		}
	}
	plainArrays(doc)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err = e.Encode(doc)
	return b.Bytes(), err
}

// plainArrays says that lists are never null: ours are empty instead.
func plainArrays(v any) {
	switch v := v.(type) {
	case map[string]any:
		if t, ok := v["type"].([]any); ok && len(t) == 2 && t[0] == "array" && t[1] == "null" {
			v["type"] = "array"
		}
		for _, below := range v {
			plainArrays(below)
		}
	case []any:
		for _, below := range v {
			plainArrays(below)
		}
	}
}

func (s *Server) schemaOf(v any) *huma.Schema {
	t := reflect.TypeOf(v)
	return s.api.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
}

// mention adds a type to the document that travels outside of bodies, and
// returns its name there.
func (s *Server) mention(v any) string {
	s.schemaOf(v)
	return "#/components/schemas/" + reflect.TypeOf(v).Name()
}

func (s *Server) jsonAnswer(description string, v any) *huma.Response {
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: s.schemaOf(v)}}}
}

func streamAnswer(description, kind string) *huma.Response {
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{kind: {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}
}

func streamBody(kinds ...string) *huma.RequestBody {
	content := map[string]*huma.MediaType{}
	for _, k := range kinds {
		content[k] = &huma.MediaType{Schema: &huma.Schema{Type: "string", Format: "binary"}}
	}
	return &huma.RequestBody{Required: true, Content: content}
}
