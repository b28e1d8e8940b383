package layer

import (
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/hostkeys"
	"lodge/internal/base/ids"
)

// Where a secure shell's server has the keys that it shows, and what those that
// are being written are called meanwhile.
const (
	keyFolder = "etc/ssh"
	keyPrefix = "ssh_host_"
	keySuffix = "_key"
	newPrefix = ".lodge-key-"
)

// freshKeys replaces the keys below upper by new ones of the same kinds, one
// after the other, and removes those of kinds that nobody makes any more, and
// certificates. No link is followed.
func freshKeys(upper *os.File) error {
	fd, err := unix.Openat2(int(upper.Fd()), keyFolder, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: keyFolder, Err: err}
	}
	folder := os.NewFile(uintptr(fd), keyFolder)
	defer folder.Close()
	old, err := keyFiles(folder)
	if err != nil {
		return err
	}
	made := map[string]bool{}
	for _, name := range old {
		if kind := kindOf(name); kind != "" {
			if err := freshKey(folder, name, kind); err != nil {
				return err
			}
			made[name], made[name+".pub"] = true, true
		}
	}
	for _, name := range old {
		if made[name] {
			continue
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "remove", Path: keyFolder + "/" + name, Err: err}
		}
	}
	return folder.Sync()
}

// kindOf returns the kind of key that a file's name says, "" for what is no
// secret key or of a kind of the past.
func kindOf(name string) string {
	kind, secret := strings.CutSuffix(strings.TrimPrefix(name, keyPrefix), keySuffix)
	if !secret || !hostkeys.Known(kind) {
		return ""
	}
	return kind
}

// keyFiles lists the files of keys in a folder, and what was left of writing
// them.
func keyFiles(folder *os.File) (names []string, err error) {
	for {
		some, err := folder.Readdirnames(256) // a guest may have made very many
		for _, name := range some {
			if !strings.HasPrefix(name, keyPrefix) && !strings.HasPrefix(name, newPrefix) {
				continue
			}
			var st unix.Stat_t
			if unix.Fstatat(int(folder.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
				names = append(names, name)
			}
		}
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// freshKey puts a new pair of keys in the place of an old one.
func freshKey(folder *os.File, name, kind string) error {
	secret, public, err := hostkeys.Make(kind)
	if err != nil {
		return err
	}
	if err := replace(folder, name, secret, 0o600); err != nil {
		return err
	}
	return replace(folder, name+".pub", public, 0o644)
}

// replace writes a file of root's beside the old one and renames it over that.
func replace(folder *os.File, name string, text []byte, mode uint32) error {
	fresh := newPrefix + ids.New()
	fd, err := unix.Openat(int(folder.Fd()), fresh, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return &os.PathError{Op: "create", Path: keyFolder + "/" + fresh, Err: err}
	}
	f := os.NewFile(uintptr(fd), fresh)
	_, err = f.Write(text)
	err = errors.Join(err, f.Chown(0, 0), f.Chmod(os.FileMode(mode)), f.Sync(), f.Close())
	if err == nil {
		err = unix.Renameat(int(folder.Fd()), fresh, int(folder.Fd()), name)
	}
	return err
}
