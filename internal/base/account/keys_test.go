package account

import (
	"bytes"
	"strings"
	"testing"

	"lodge/internal/base/errs"
)

const (
	keyAnn = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJ1bm5pbmctb3V0LW9mLWlkZWFzLWZvci1rZXlzLiEh ann@desk"
	keyBob = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTY= bob"
)

func TestCheckKeys(t *testing.T) {
	good := [][]string{{keyAnn}, {keyAnn, keyBob}, {`command="ls -l",no-pty ` + keyAnn}, {strings.TrimSuffix(keyAnn, " ann@desk")}}
	for _, keys := range good {
		if err := CheckKeys(keys); err != nil {
			t.Errorf("%q: %v", keys, err)
		}
	}
	bad := [][]string{nil, {""}, {"# a remark"}, {"ssh-ed25519"}, {"ssh-rsa " + strings.Fields(keyAnn)[1]}, {keyAnn + "\n" + keyBob}, {keyAnn + "\x00"},
		{"ssh-ed25519 AAAA"}, {"-----BEGIN OPENSSH PRIVATE KEY-----"}, {keyAnn + strings.Repeat("x", keyMax)}, make([]string, keysMax+1)}
	for _, keys := range bad {
		if err := CheckKeys(keys); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", keys, err)
		}
	}
}

func TestWithKeys(t *testing.T) {
	for _, c := range []struct{ was, want string }{
		{"", keyAnn + "\n" + keyBob + "\n"},
		{keyAnn + "\n", keyAnn + "\n" + keyBob + "\n"},
		{"no-pty " + keyBob, "no-pty " + keyBob + "\n" + keyAnn + "\n"},
		{"#" + keyAnn + "\n", "#" + keyAnn + "\n" + keyAnn + "\n" + keyBob + "\n"},
	} {
		if got := WithKeys([]byte(c.was), []string{keyAnn, keyBob, keyAnn}); string(got) != c.want {
			t.Errorf("%q became %q", c.was, got)
		}
	}
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte(keyBob), keyAnn)
	f.Add([]byte("\xff\n\n"), "ssh-rsa AAAA")
	f.Fuzz(func(t *testing.T, file []byte, key string) {
		out := WithKeys(file, []string{key})
		if !bytes.HasPrefix(out, file) {
			t.Error("what was there is not there any more")
		}
		if CheckKeys([]string{key}) == nil && !bytes.Equal(WithKeys(out, []string{key}), out) {
			t.Error("the same key came twice")
		}
	})
}
