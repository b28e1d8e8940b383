package dial

import (
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"strings"

	"lodge/internal/base/errs"
)

// entropySize is how much randomness a copied guest is given.
const entropySize = 64

func entropy() string {
	b := make([]byte, entropySize)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Bounds of what the scheme takes.
const (
	passwordMax = 256
	saltLen     = 16
	rounds      = 5000
)

const cryptAlphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// hashPassword makes a password what /etc/shadow holds, by the scheme that
// every distribution's C library knows.
func hashPassword(password string) (string, error) {
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
