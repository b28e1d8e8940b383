package server

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

const checkedIn = "../../api/openapi.json"

var update = flag.Bool("update", false, "write api/openapi.json")

func TestOpenAPIIsCheckedIn(t *testing.T) {
	now, err := OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(checkedIn)
	if err == nil {
		if broken := breaking(parse(t, before), parse(t, now)); len(broken) > 0 {
			t.Fatalf("the interface breaks its users:\n%s", strings.Join(broken, "\n"))
		}
	}
	if *update {
		if err := os.WriteFile(checkedIn, now, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(now) {
		t.Fatal("api/openapi.json is not what the server speaks: go test ./internal/server -run OpenAPI -update")
	}
}

func parse(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// breaking lists what a user of before would miss in now: a path, method,
// parameter, field or enum value that is gone, a type that changed, and
// anything a request must have that it needed not.
func breaking(before, now any) []string {
	var found []string
	var walk func(where string, a, b any)
	walk = func(where string, a, b any) {
		am, ok := a.(map[string]any)
		if !ok {
			return
		}
		bm, ok := b.(map[string]any)
		if !ok {
			found = append(found, where+" is gone")
			return
		}
		for k, v := range am {
			at := where + "/" + k
			switch {
			case k == "description" || k == "summary" || k == "examples" || k == "example" || k == "default" && !strings.HasSuffix(where, "responses"):
			case k == "enum":
				for _, e := range list(v) {
					if !slices.Contains(list(bm[k]), e) {
						found = append(found, fmt.Sprintf("%s no longer has %s", at, e))
					}
				}
			case k == "type" || k == "$ref" || k == "in":
				if fmt.Sprint(v) != fmt.Sprint(bm[k]) {
					found = append(found, fmt.Sprintf("%s was %v and is %v", at, v, bm[k]))
				}
			case k == "parameters":
				walk(at, byName(v), byName(bm[k]))
			default:
				walk(at, v, bm[k])
			}
		}
		for _, r := range list(bm["required"]) {
			if props, ok := am["properties"].(map[string]any); ok && !slices.Contains(list(am["required"]), r) {
				if _, old := props[r]; !old || len(list(am["required"])) >= 0 && requestOnly(where) {
					found = append(found, where+" now must have "+r)
				}
			}
		}
		if am["required"] != true && bm["required"] == true {
			found = append(found, where+" is now required")
		}
	}
	walk("", before, now)
	return found
}

// requestOnly tells bodies that users send from those they get: an answer may
// promise more than before, a request must not ask for more.
func requestOnly(where string) bool {
	i := strings.LastIndexByte(where, '/')
	name := where[i+1:]
	for _, s := range []string{"Create", "Patch", "Stop", "Build", "Request", "Rename", "Manifest", "Spec"} {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

func list(v any) []string {
	var all []string
	items, _ := v.([]any)
	for _, i := range items {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

func byName(v any) map[string]any {
	all := map[string]any{}
	items, _ := v.([]any)
	for _, i := range items {
		if m, ok := i.(map[string]any); ok {
			all[fmt.Sprint(m["in"], " ", m["name"])] = m
		}
	}
	return all
}

func TestBreakingChangesAreFound(t *testing.T) {
	const base = `{"paths":{"/v1/a":{"get":{"parameters":[{"in":"query","name":"x","schema":{"type":"string","enum":["p","q"]}}]}}},
		"components":{"schemas":{"ThingCreate":{"properties":{"name":{"type":"string"},"n":{"type":"integer"}},"required":["name"]},
		"Thing":{"properties":{"name":{"type":"string"}},"required":[]}}}}`
	for name, c := range map[string]struct {
		from, to string
		broken   bool
	}{
		"nothing":                   {"", "", false},
		"path removed":              {`"/v1/a"`, `"/v1/b"`, true},
		"method removed":            {`"get"`, `"put"`, true},
		"parameter removed":         {`"name":"x"`, `"name":"y"`, true},
		"enum value removed":        {`["p","q"]`, `["p"]`, true},
		"enum value added":          {`["p","q"]`, `["p","q","r"]`, false},
		"field removed":             {`,"n":{"type":"integer"}`, ``, true},
		"type changed":              {`"integer"`, `"string"`, true},
		"request field required":    {`"required":["name"]`, `"required":["name","n"]`, true},
		"answer field promised":     {`"required":[]`, `"required":["name"]`, false},
		"optional field added":      {`"n":{`, `"m":{"type":"string"},"n":{`, false},
		"parameter became required": {`"name":"x",`, `"name":"x","required":true,`, true},
	} {
		t.Run(name, func(t *testing.T) {
			next := base
			if c.from != "" {
				next = strings.Replace(base, c.from, c.to, 1)
				if next == base {
					t.Fatal("the case changes nothing")
				}
			}
			got := breaking(parse(t, []byte(base)), parse(t, []byte(next)))
			if (len(got) > 0) != c.broken {
				t.Fatalf("broken: %v", got)
			}
		})
	}
}
