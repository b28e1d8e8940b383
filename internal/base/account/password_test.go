package account

import (
	"bytes"
	"strings"
	"testing"
	"time"

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
		if _, err := HashPassword(p); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func FuzzPasswords(f *testing.F) {
	f.Add([]byte("root:*:1:::::\nann:!:2::::::\n"), "ann")
	f.Add([]byte("ann"), "ann")
	f.Add([]byte(":::\nann:x"), "")
	f.Fuzz(func(t *testing.T, shadow []byte, user string) {
		const hash = "$6$salt$hash"
		out, ok := WithPassword(shadow, user, hash, time.Unix(86400*20000, 0))
		if !ok {
			if !bytes.Equal(out, shadow) {
				t.Error("changed for nobody")
			}
			return
		}
		if bytes.Count(out, []byte("\n")) != bytes.Count(shadow, []byte("\n")) {
			t.Error("lines were lost or made")
		}
		if !strings.ContainsAny(user, ":\n") && !bytes.Contains(out, []byte(user+":"+hash+":20000")) {
			t.Errorf("%q", out)
		}
	})
}

func TestPasswordsOfOthersStay(t *testing.T) {
	out, ok := WithPassword([]byte("root:*:1:0:99999:7:::\nann:!:2:0:99999:7:::\nannie:x:3::::::"), "ann", "H", time.Unix(86400*20000, 0))
	if !ok || string(out) != "root:*:1:0:99999:7:::\nann:H:20000:0:99999:7:::\nannie:x:3::::::" {
		t.Errorf("%q %v", out, ok)
	}
	for _, user := range []string{"", "a:b", "../x", "a\nb", strings.Repeat("x", 300)} {
		if err := CheckUser(user); !errs.Is(err, errs.Invalid) {
			t.Errorf("the user %q: %v", user, err)
		}
	}
	for _, hash := range []string{"", "H:x", "H\n", strings.Repeat("x", 600)} {
		if err := CheckHash(hash); !errs.Is(err, errs.Invalid) {
			t.Errorf("the hash %q: %v", hash, err)
		}
	}
}
