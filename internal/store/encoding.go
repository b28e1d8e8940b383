package store

import (
	"encoding/json"
	"fmt"
	"time"

	"lodge/internal/model"
)

// encodingVersion is written into every value. It rises when a value written
// by this program could be misread by an older one; reading goes back to 1 for
// ever, which the golden files hold.
const encodingVersion = 1

// The parts of a record, as they stand in keys and events.
const (
	partSpec   = "spec"
	partStatus = "status"
	partName   = "name"
)

// specValue is what lies at KIND/spec/ID.
type specValue struct {
	Version int             `json:"v"`
	At      time.Time       `json:"at"` // when it was written
	Meta    model.Meta      `json:"meta"`
	Spec    json.RawMessage `json:"spec"`
}

// statusValue is what lies at KIND/status/ID.
type statusValue struct {
	Version int             `json:"v"`
	At      time.Time       `json:"at"`
	Status  json.RawMessage `json:"status"`
}

func encodeSpec(at time.Time, meta model.Meta, spec any) ([]byte, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return json.Marshal(specValue{Version: encodingVersion, At: at, Meta: meta, Spec: raw})
}

func encodeStatus(at time.Time, status any) ([]byte, error) {
	raw, err := json.Marshal(status)
	if err != nil {
		return nil, err
	}
	return json.Marshal(statusValue{Version: encodingVersion, At: at, Status: raw})
}

// part is a stored value as read; body is still the encoding of the table's
// own type.
type part struct {
	rev  Rev // 0: there is none
	at   time.Time
	meta model.Meta // of a spec
	body json.RawMessage
	err  error // the value can't be read
}

// decode reads the envelope of a value. An error stays in the part, for the
// table that holds it to report.
func decode(which string, value []byte, rev Rev) part {
	p := part{rev: rev}
	var version int
	if which == partSpec {
		var v specValue
		p.err = json.Unmarshal(value, &v)
		p.at, p.meta, p.body, version = v.At, v.Meta, v.Spec, v.Version
	} else {
		var v statusValue
		p.err = json.Unmarshal(value, &v)
		p.at, p.body, version = v.At, v.Status, v.Version
	}
	if p.err == nil {
		p.err = checkVersion(version)
	}
	return p
}

func checkVersion(v int) error {
	if v < 1 || v > encodingVersion {
		return fmt.Errorf("written in encoding %d, this program reads 1 to %d", v, encodingVersion)
	}
	return nil
}

// now is the present without the monotonic reading, which does not survive
// being stored.
func now() time.Time { return time.Now().UTC().Round(0) }
