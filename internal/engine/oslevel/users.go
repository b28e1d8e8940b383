package oslevel

import (
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	accounts "lodge/internal/base/account"
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

// lookup finds the account that who means.
func lookup(who string, passwd, group io.Reader) (account, error) {
	a, err := accounts.Lookup(who, io.LimitReader(passwd, accounts.FileMax), io.LimitReader(group, accounts.FileMax))
	return account{name: a.Name, uid: a.UID, gid: a.GID, groups: a.Groups, home: a.Home, shell: a.Shell}, err
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
	return lookup(who, passwd, group)
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
