package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/account"
	"lodge/internal/base/errs"
)

// SetPassword gives a user of this guest a new password, as its hash.
func SetPassword(user, hash string) error {
	if err := cmp.Or(account.CheckUser(user), account.CheckHash(hash)); err != nil {
		return err
	}
	const path = "/etc/shadow"
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	text, st, err := readIn(dir, filepath.Base(path))
	if errors.Is(err, unix.ENOENT) {
		return &errs.Error{Kind: errs.Unsupported, Field: "user", Msg: "the guest has no " + path, Hint: "use keys: lodge authorize"}
	}
	if err != nil {
		return err
	}
	text, ok := account.WithPassword(text, user, hash, time.Now())
	if !ok {
		return &errs.Error{Kind: errs.NotFound, Field: "user", Msg: fmt.Sprintf("the guest has no user %q with a password", user), Hint: "add the user first"}
	}
	return replaceIn(dir, filepath.Base(path), text, int(st.Uid), int(st.Gid), st.Mode&0o777)
}

// Authorize lets who has one of the keys log in as a user of this guest by SSH.
// The folders it writes to are the user's, who may have put links to files of
// others there: none is followed.
func Authorize(user string, keys []string) error {
	if err := cmp.Or(account.CheckUser(user), account.CheckKeys(keys)); err != nil {
		return err
	}
	a, err := lookup(user)
	if err != nil {
		return err
	}
	home, err := os.OpenFile(a.Home, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return &errs.Error{Kind: errs.NotFound, Field: "user", Msg: fmt.Sprintf("%s, the home of %s, cannot be opened", a.Home, user), Hint: "make it first", Err: err}
	}
	defer home.Close()
	dir, err := private(home, ".ssh", a)
	if err != nil {
		return err
	}
	defer dir.Close()
	const name = "authorized_keys"
	text, _, err := readIn(dir, name)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return replaceIn(dir, name, account.WithKeys(text, keys), int(a.UID), int(a.GID), 0o600)
}

// lookup finds one who has an entry in this guest's passwd.
func lookup(user string) (account.Account, error) {
	passwd, err := os.Open("/etc/passwd")
	if err != nil {
		return account.Account{}, &errs.Error{Kind: errs.Unsupported, Field: "user", Msg: "the guest has no /etc/passwd", Err: err}
	}
	defer passwd.Close()
	a, err := account.Lookup(user, io.LimitReader(passwd, account.FileMax), eof{})
	if err == nil && a.Name != user {
		err = &errs.Error{Kind: errs.NotFound, Field: "user", Msg: fmt.Sprintf("the guest has no user %q", user), Hint: "add the user first"}
	}
	return a, err
}

// eof is an empty file: the groups of a user do not matter here.
type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// private opens a folder of a's in its home, and makes it if it is not there. One
// that is another's is refused.
func private(home *os.File, name string, a account.Account) (*os.File, error) {
	err := unix.Mkdirat(int(home.Fd()), name, 0o700)
	fresh := err == nil
	if err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("~/%s: %w", name, err)
	}
	fd, err := unix.Openat(int(home.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &errs.Error{Kind: errs.Conflict, Field: "user", Msg: "~/" + name + " of the user is no folder", Hint: "look at it in the guest", Err: err}
	}
	dir := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && fresh {
		err = dir.Chown(int(a.UID), int(a.GID))
	} else if err == nil && st.Uid != a.UID && st.Uid != 0 {
		err = &errs.Error{Kind: errs.Conflict, Field: "user", Msg: "~/" + name + " belongs to another user", Hint: "look at it in the guest"}
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// readIn reads a file of a folder, which must be one, and not too large.
func readIn(dir *os.File, name string) ([]byte, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > account.FileMax {
		return nil, st, &errs.Error{Kind: errs.Conflict, Msg: name + " of the guest is no file, or too large"}
	}
	text, err := io.ReadAll(io.LimitReader(f, account.FileMax))
	return text, st, err
}

// replaceIn puts a new file in the place of one of a folder, whole or not at all.
func replaceIn(dir *os.File, name string, text []byte, uid, gid int, mode uint32) error {
	temp := "." + name + ".lodge"
	_ = unix.Unlinkat(int(dir.Fd()), temp, 0) // left by one that was cut off
	fd, err := unix.Openat(int(dir.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: temp, Err: err}
	}
	f := os.NewFile(uintptr(fd), temp)
	_, err = f.Write(text)
	err = errors.Join(err, f.Chown(uid, gid), f.Chmod(os.FileMode(mode)), f.Sync(), f.Close())
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), name)
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), temp, 0)
		return err
	}
	return dir.Sync()
}
