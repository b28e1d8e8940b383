package account

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"fmt"
	"strings"
	"time"

	"lodge/internal/base/errs"
)

// Bounds of what the scheme takes.
const (
	passwordMax = 256
	saltLen     = 16
	rounds      = 5000
	nameMax     = 256
	hashMax     = 512
)

const cryptAlphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// HashPassword makes a password what /etc/shadow holds, by the scheme that
// every distribution's C library knows.
func HashPassword(password string) (string, error) {
	switch {
	case password == "":
		return "", errs.Bad("password", "is empty", "give one")
	case len(password) > passwordMax:
		return "", errs.Bad("password", "is longer than 256 bytes", "take a shorter one")
	case strings.ContainsAny(password, "\x00\n"):
		return "", errs.Bad("password", "has a line break or zero byte in it", "take another")
	}
	raw := make([]byte, saltLen)
	rand.Read(raw)
	for i, b := range raw {
		raw[i] = cryptAlphabet[b&63]
	}
	return sha512Crypt(password, string(raw)), nil
}

// sha512Crypt is Ulrich Drepper's scheme "$6$"
// (https://www.akkadia.org/drepper/SHA-crypt.txt) with its usual rounds.
func sha512Crypt(password, salt string) string {
	sum := func(parts ...string) string {
		b := sha512.Sum512([]byte(strings.Join(parts, "")))
		return string(b[:])
	}
	fill := func(b string, n int) string { return strings.Repeat(b, n/len(b)+1)[:n] }

	alternate := sum(password, salt, password)
	var mixed strings.Builder
	for n := len(password); n > 0; n >>= 1 {
		if n&1 == 1 {
			mixed.WriteString(alternate)
		} else {
			mixed.WriteString(password)
		}
	}
	digest := sum(password, salt, fill(alternate, len(password)), mixed.String())
	p := fill(sum(strings.Repeat(password, len(password))), len(password))
	s := fill(sum(strings.Repeat(salt, 16+int(digest[0]))), len(salt))
	for i := range rounds {
		first, last := digest, p
		if i%2 == 1 {
			first, last = p, digest
		}
		middle := ""
		if i%3 != 0 {
			middle = s
		}
		if i%7 != 0 {
			middle += p
		}
		digest = sum(first, middle, last)
	}
	var out strings.Builder
	group := func(a, b, c byte, n int) {
		v := uint32(a)<<16 | uint32(b)<<8 | uint32(c)
		for range n {
			out.WriteByte(cryptAlphabet[v&63])
			v >>= 6
		}
	}
	i, j, k := 0, 21, 42
	for range 21 {
		group(digest[i], digest[j], digest[k], 4)
		i, j, k = j+1, k+1, i+1
	}
	group(0, 0, digest[63], 2)
	return "$6$" + salt + "$" + out.String()
}

// WithPassword is a guest's /etc/shadow with another password for user, as its
// hash, changed today. It is false, and shadow as it was, where user has none.
func WithPassword(shadow []byte, user, hash string, today time.Time) ([]byte, bool) {
	var out bytes.Buffer
	found := false
	for line := range bytes.Lines(shadow) {
		text, ended := bytes.CutSuffix(line, []byte("\n"))
		f := bytes.Split(text, []byte(":"))
		if len(f) < 3 || string(f[0]) != user || found {
			out.Write(line)
			continue
		}
		found = true
		f[1] = []byte(hash)
		f[2] = fmt.Appendf(nil, "%d", today.Unix()/(24*60*60))
		out.Write(bytes.Join(f, []byte(":")))
		if ended {
			out.WriteByte('\n')
		}
	}
	return out.Bytes(), found
}

// CheckUser refuses what cannot be the name of a guest's user.
func CheckUser(user string) error {
	if user == "" || len(user) > nameMax || strings.ContainsAny(user, ":/\n\x00") {
		return errs.Bad("user", fmt.Sprintf("%q is no user's name", user), "name one of the guest's users")
	}
	return nil
}

// CheckHash refuses what would break a line of /etc/shadow.
func CheckHash(hash string) error {
	if hash == "" || len(hash) > hashMax || strings.ContainsAny(hash, ":\n\x00") {
		return errs.Bad("password", "its hash makes no sense", "")
	}
	return nil
}
