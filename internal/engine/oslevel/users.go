package oslevel

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// account is who a program runs as, in the guest's own numbers.
type account struct {
	name     string
	uid, gid uint32
	groups   []uint32 // gid among them, for an account with an entry
	home     string
	shell    string
}

// groupsMax is how many groups an account may be in here; the kernel takes 65,536.
const groupsMax = 1024

// accountFileMax bounds what is read of a guest's passwd and group files.
const accountFileMax = 4 << 20

// lookup finds the account that who means: a name or number, and perhaps ":"
// and a group's. Numbers need no entry in the guest's files.
func lookup(who string, passwd, group io.Reader) (account, error) {
	user, wantGroup, hasGroup := strings.Cut(who, ":")
	if user == "" {
		user = "root"
	}
	a, known := findUser(user, passwd)
	if !known {
		uid, err := strconv.ParseUint(user, 10, 16)
		switch {
		case err == nil:
			a = account{name: user, uid: uint32(uid), home: "/", shell: "/bin/sh"}
		case user == "root":
			a = account{name: "root", home: "/root", shell: "/bin/sh"}
		default:
			return a, &errs.Error{Op: "oslevel.exec", Kind: errs.NotFound, Field: "user", Msg: fmt.Sprintf("the guest has no user %q", user)}
		}
	}
	if known {
		a.groups = []uint32{a.gid}
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
			if known && member == a.name && len(a.groups) < groupsMax {
				a.groups = append(a.groups, id)
			}
		}
	})
	if !hasGroup {
		return a, nil
	}
	if !found {
		if gid, found = idOf(wantGroup); !found {
			return a, &errs.Error{Op: "oslevel.exec", Kind: errs.NotFound, Field: "user", Msg: fmt.Sprintf("the guest has no group %q", wantGroup)}
		}
	}
	a.gid, a.groups = gid, nil // as asked, and no more
	return a, nil
}

// findUser looks for a name, or failing that a number, in passwd.
func findUser(user string, passwd io.Reader) (account, bool) {
	var byName, byID *account
	want, isID := idOf(user)
	eachRow(passwd, 7, func(f []string) {
		uid, ok := idOf(f[2])
		gid, okGroup := idOf(f[3])
		if !ok || !okGroup {
			return
		}
		a := &account{name: f[0], uid: uid, gid: gid, home: f[5], shell: f[6]}
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
		return account{}, false
	}
	if !strings.HasPrefix(byName.home, "/") {
		byName.home = "/"
	}
	if !strings.HasPrefix(byName.shell, "/") {
		byName.shell = "/bin/sh"
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

// account resolves a user by the guest's own files.
func (m *Machine) account(who string) (account, error) {
	root, err := m.root()
	if err != nil {
		return account{}, err
	}
	defer root.Close()
	passwd, err := openInside(root, "etc/passwd")
	if err != nil {
		return account{}, err
	}
	defer passwd.Close()
	group, err := openInside(root, "etc/group")
	if err != nil {
		return account{}, err
	}
	defer group.Close()
	return lookup(who, io.LimitReader(passwd, accountFileMax), io.LimitReader(group, accountFileMax))
}

// root opens the guest's root directory.
func (m *Machine) root() (*os.File, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(m.held.State().Pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		// Only now is it sure that the number was still the guest's.
		if err = unix.PidfdSendSignal(m.held.Pidfd(), 0, nil, 0); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, &errs.Error{Op: "oslevel.root", Kind: errs.Conflict, Ref: "guest/" + m.g.Name, Msg: "the guest is not running", Err: err}
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// openInside opens a regular file of a guest for reading, following links as
// the guest would. What is not there reads as empty.
func openInside(root *os.File, path string) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unblocked,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return os.NewFile(uintptr(fd), path), nil
		}
		unix.Close(fd)
	}
	return os.Open(os.DevNull)
}
