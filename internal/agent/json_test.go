package agent

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
)

// everyKind is a request in which every kind of field is used.
func everyKind(s string, n int64, f float64) Request {
	return Request{Op: OpExec, Path: s, Slots: []int{0, int(int32(n)), -1}, Seconds: f, Time: n, Entropy: s,
		Exec: &Exec{Argv: []string{s, "", "\x00\t\n\"\\/\u2028é\U0001F600"}, TTY: true, Rows: uint16(n), In: n > 0},
		Config: &Config{ID: s, Env: map[string]string{s: s, "A": "b"}, Credit: true, Init: []string{},
			NICs: []NIC{{Name: "eth0", MTU: int(int32(n)), Prefixes: []string{"10.0.0.1/8"}}, {}}}}
}

// FuzzJSON: what one writes the other reads, and the same.
func FuzzJSON(f *testing.F) {
	f.Add("text", int64(5), 1.5)
	f.Add("\xff\xfe broken \\ud800", int64(-1)<<63, 1e300)
	f.Add("<&>\u2029\x7f", int64(1)<<40, math.Copysign(0, -1))
	f.Fuzz(func(t *testing.T, s string, n int64, x float64) {
		if x-x != 0 {
			return // JSON has no words for these
		}
		s = strings.ToValidUTF8(s, "\uFFFD")
		want := everyKind(s, n, x)
		ours, err := Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{"ours": ours, "theirs": theirs} {
			var a, b Request
			if err := Decode(text, &a); err != nil {
				t.Errorf("%s, read by us: %v: %s", name, err, text)
			}
			if err := json.Unmarshal(text, &b); err != nil {
				t.Errorf("%s, read by them: %v: %s", name, err, text)
			}
			if !reflect.DeepEqual(a, want) || !reflect.DeepEqual(b, want) {
				t.Errorf("%s: %s\n%+v\n%+v", name, text, a, b)
			}
		}
		stats := Result{Stats: &Stats{Load: [3]float64{x, 0, 1}, CPUs: 1, MemoryTotal: uint64(n)}}
		text, err := Encode(stats)
		var again Result
		if err != nil || json.Unmarshal(text, &again) != nil || !reflect.DeepEqual(again, stats) {
			t.Errorf("%s %v", text, err)
		}
	})
}

// FuzzDecode: whatever comes, we take nothing that is no JSON, and understand
// the rest as encoding/json does.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"op":"exec","exec":{"argv":["a","\u00e9\ud83d\ude00"],"tty":true,"rows":5}}`, `{"x":[1,2.5e-3,{"y":null}],"seconds":-0.1}`,
		`{"slots":[1,2],"config":{"env":{"a":"b"},"nics":[{"mtu":1500}]}}`, ` { } `, `[]`, `{"time":1e3}`, `{"rows":01}`, `{"path":"` + "\xff" + `"}`,
		`{"op":"a","op":"b"}`, `{"exec":null,"slots":null}`, strings.Repeat(`{"a":`, 40), `{"op":"\ud800\u0041"}`, `{"op":1}`, `{"exec":{"rows":65536}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ours, theirs Request
		err := Decode(b, &ours)
		// Theirs takes names of fields in capitals too, and what looks like them.
		if bytes.ContainsFunc(b, func(r rune) bool { return r >= 'A' && r <= 'Z' || r > 0x7f }) || bytes.Contains(b, []byte(`\u`)) {
			return
		}
		e := json.Unmarshal(b, &theirs)
		switch {
		case err == nil && e != nil:
			t.Errorf("%q was taken; %v", b, e)
		case err == nil && !reflect.DeepEqual(ours, theirs):
			t.Errorf("%q\n%+v\n%+v", b, ours, theirs)
		case err != nil && e == nil && bytes.Count(b, []byte("["))+bytes.Count(b, []byte("{")) < depthMax:
			t.Errorf("%q was refused", b)
		}
	})
}
