package account

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"lodge/internal/base/errs"
)

// Bounds of the keys that are given at once.
const (
	keysMax   = 64
	keyMax    = 16 << 10 // bytes of one, with its options and remark
	keysTotal = 256 << 10
)

// CheckKeys refuses what a server of SSH would not read as public keys, or would
// read as more than was meant.
func CheckKeys(keys []string) error {
	total := 0
	for _, k := range keys {
		total += len(k)
		switch {
		case strings.Contains(k, "PRIVATE KEY"):
			return errs.Bad("keys", "one is a private key", "give the public half: the file that ends in .pub")
		case len(k) > keyMax || strings.ContainsFunc(k, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) || keyOf(k) == "":
			return errs.Bad("keys", fmt.Sprintf("%.40q is no public key", k), "give lines as in authorized_keys: ssh-ed25519 AAAA… NAME")
		}
	}
	if len(keys) == 0 || len(keys) > keysMax || total > keysTotal {
		return errs.Bad("keys", "there are none, or too many", fmt.Sprintf("give 1 to %d at a time", keysMax))
	}
	return nil
}

// keyOf is the kind and the key itself of a line, without the options before
// and the remark behind, or nothing where the line has none.
func keyOf(line string) string {
	f := strings.Fields(line)
	for i := 0; i+1 < len(f); i++ {
		b, err := base64.StdEncoding.DecodeString(f[i+1])
		if err != nil || len(b) < 4 {
			continue
		}
		// A key says of itself what kind it is.
		n := binary.BigEndian.Uint32(b)
		if uint64(n) <= uint64(len(b)-4) && n > 0 && string(b[4:4+n]) == f[i] {
			return f[i] + " " + f[i+1]
		}
	}
	return ""
}

// WithKeys is a user's authorized_keys with those of keys that it did not have
// yet at its end.
func WithKeys(file []byte, keys []string) []byte {
	var have []string
	for line := range bytes.Lines(file) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			have = append(have, keyOf(string(line)))
		}
	}
	out := bytes.Clone(file)
	for _, k := range keys {
		key := keyOf(k)
		if slices.Contains(have, key) {
			continue
		}
		if len(out) > 0 && out[len(out)-1] != '\n' {
			out = append(out, '\n')
		}
		out = append(append(out, k...), '\n')
		have = append(have, key)
	}
	return out
}
