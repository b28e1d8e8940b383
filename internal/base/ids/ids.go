// Package ids makes identifiers that are never reused.
package ids

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
)

var encoding = base32.NewEncoding("abcdefghijkmnpqrstuvwxyz23456789").WithPadding(base32.NoPadding)

// New returns a random identifier of 16 lower-case letters and digits (80
// bits), safe in file names, cgroup names and DNS labels. It starts with a
// letter.
func New() string {
	var b [10]byte
	rand.Read(b[:])
	b[0] &= 0x7f // the first letter comes from the first half of the alphabet: no digit
	return encoding.EncodeToString(b[:])
}

// Valid reports whether s could have come from New.
func Valid(s string) bool {
	return len(s) == 16 && strings.Trim(s, "abcdefghijkmnpqrstuvwxyz23456789") == ""
}
