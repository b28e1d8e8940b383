package dial

import (
	"strings"
	"testing"

	"lodge/internal/base/errs"
)

// The vectors are what `openssl passwd -6` makes.
func TestPasswordHash(t *testing.T) {
	for _, c := range []struct{ password, salt, want string }{
		{"Hello world!", "saltstring", "svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"},
		{"a rather long password that is longer than sixty-four bytes so that digests repeat, see?", "abcdefghijklmnop", "/2y3kDPI8.uiFeuvA.i7sq4uI.TWw40/ixgxGbiZuyzThZmtzBEyLqagkW.yAUcnn9taP6wigIxo790FkCipv0"},
	} {
		if got := sha512Crypt(c.password, c.salt); got != "$6$"+c.salt+"$"+c.want {
			t.Errorf("%q: %s", c.password, got)
		}
	}
}

func TestBadPasswords(t *testing.T) {
	for _, p := range []string{"", "a\nb", "a\x00b", strings.Repeat("x", 257)} {
		if _, err := hashPassword(p); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", p, err)
		}
	}
}
