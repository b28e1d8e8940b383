// Package account reads a guest's files of users and groups, which hold whatever
// the guest wrote there.
package account

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"lodge/internal/base/errs"
)

// Account is who a program runs as, in the guest's own numbers.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // GID among them, for an account with an entry
	Home     string
	Shell    string
}

// GroupsMax is how many groups an account may be in here; the kernel takes 65,536.
const GroupsMax = 1024

// FileMax bounds what is read of a guest's passwd and group files.
const FileMax = 4 << 20

// Lookup finds the account that who means: a name or number, and perhaps ":"
// and a group's. Numbers need no entry in the guest's files.
func Lookup(who string, passwd, group io.Reader) (Account, error) {
	user, wantGroup, hasGroup := strings.Cut(who, ":")
	if user == "" {
		user = "root"
	}
	a, known := findUser(user, passwd)
	if !known {
		uid, err := strconv.ParseUint(user, 10, 16)
		switch {
		case err == nil:
			a = Account{Name: user, UID: uint32(uid), Home: "/", Shell: "/bin/sh"}
		case user == "root":
			a = Account{Name: "root", Home: "/root", Shell: "/bin/sh"}
		default:
			return a, &errs.Error{Op: "exec", Kind: errs.NotFound, Field: "user", Msg: fmt.Sprintf("the guest has no user %q", user)}
		}
	}
	if known {
		a.Groups = []uint32{a.GID}
	}
	gid, found := uint32(0), false
	eachRow(group, 4, func(f []string) {
		id, ok := idOf(f[2])
		if !ok {
			return
		}
		if hasGroup && !found && f[0] == wantGroup {
			gid, found = id, true
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if known && member == a.Name && len(a.Groups) < GroupsMax {
				a.Groups = append(a.Groups, id)
			}
		}
	})
	if !hasGroup {
		return a, nil
	}
	if !found {
		if gid, found = idOf(wantGroup); !found {
			return a, &errs.Error{Op: "exec", Kind: errs.NotFound, Field: "user", Msg: fmt.Sprintf("the guest has no group %q", wantGroup)}
		}
	}
	a.GID, a.Groups = gid, nil // as asked, and no more
	return a, nil
}

// findUser looks for a name, or failing that a number, in passwd.
func findUser(user string, passwd io.Reader) (Account, bool) {
	var byName, byID *Account
	want, isID := idOf(user)
	eachRow(passwd, 7, func(f []string) {
		uid, ok := idOf(f[2])
		gid, okGroup := idOf(f[3])
		if !ok || !okGroup {
			return
		}
		a := &Account{Name: f[0], UID: uid, GID: gid, Home: f[5], Shell: f[6]}
		if byName == nil && f[0] == user {
			byName = a
		}
		if byID == nil && isID && uid == want {
			byID = a
		}
	})
	if byName == nil {
		byName = byID
	}
	if byName == nil {
		return Account{}, false
	}
	if !strings.HasPrefix(byName.Home, "/") {
		byName.Home = "/"
	}
	if !strings.HasPrefix(byName.Shell, "/") {
		byName.Shell = "/bin/sh"
	}
	return *byName, true
}

// idOf reads an id of a guest, of which there are 65,536.
func idOf(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint32(n), err == nil
}

// eachRow calls row for every line that has at least n fields between colons
// and no byte that could not be in such a file; others are passed over.
func eachRow(r io.Reader, n int, row func(f []string)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		f := strings.Split(lines.Text(), ":")
		if len(f) >= n && f[0] != "" && !strings.Contains(lines.Text(), "\x00") {
			row(f)
		}
	}
}
