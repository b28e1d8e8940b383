package inside

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

const (
	// keyTime is how long making a new key may take.
	keyTime = time.Minute
	// servedTime is how long the host may take to make keys.
	servedTime = 2 * time.Minute
)

const hostKeys = "/etc/ssh/ssh_host_"

// serverKeys are the keys of a secure shell's server in a guest that was copied.
type serverKeys struct {
	at     string // what their files' names begin with
	mu     sync.Mutex
	awaits []string    // kinds that the host makes
	late   *time.Timer // when it has not
}

// fresh takes the keys away that a secure shell's server shows, which were another
// guest's, and has new ones of the same kinds made: by the host, to which they are
// returned, if it is served by it, or else here. Making them takes time that the
// guest's owner need not wait for; until then the server has none.
func (k *serverKeys) fresh(served bool) (kinds []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old, _ := filepath.Glob(k.at + "*")
	kinds = append(keyKinds(old), k.awaits...) // a copy of one that still awaited them
	slices.Sort(kinds)
	kinds = slices.Compact(kinds)
	kinds = kinds[:min(len(kinds), agent.HostKeysMax)]
	for _, f := range old {
		_ = os.Remove(f)
	}
	if k.late != nil {
		k.late.Stop()
	}
	if k.awaits = nil; len(kinds) == 0 {
		return nil
	}
	if !served {
		time.AfterFunc(laterTime, func() { makeKeys(kinds) })
		return nil
	}
	k.awaits = kinds
	k.late = time.AfterFunc(servedTime, func() {
		k.mu.Lock()
		late := k.awaits
		k.awaits = nil
		k.mu.Unlock()
		makeKeys(late)
	})
	return kinds
}

// take puts keys that the host made in their places.
func (k *serverKeys) take(keys []agent.HostKey) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var missing []string
	for _, kind := range k.awaits {
		i := slices.IndexFunc(keys, func(key agent.HostKey) bool { return key.Kind == kind })
		if i < 0 || k.put(keys[i]) != nil {
			missing = append(missing, kind)
		}
	}
	if len(k.awaits) == 0 {
		return &errs.Error{Kind: errs.Conflict, Msg: "no keys are missing"}
	}
	k.late.Stop()
	k.awaits = nil
	hangUpServers()
	if len(missing) > 0 {
		go makeKeys(missing)
	}
	return nil
}

type keyFile struct {
	name, text string
	mode       uint32
}

// filesOf are the files of a key, whose names begin with at. Who finds the secret
// one finds the other, too.
func filesOf(at string, key agent.HostKey) []keyFile {
	return []keyFile{{at + key.Kind + "_key.pub", key.Public, 0o644}, {at + key.Kind + "_key", key.Secret, 0o600}}
}

// put writes a pair of keys where there is none.
func (k *serverKeys) put(key agent.HostKey) error {
	for _, f := range filesOf(k.at, key) {
		file, err := os.OpenFile(f.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, os.FileMode(f.mode))
		if err != nil {
			return err
		}
		_, err = file.WriteString(f.text)
		if cerr := file.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeKeys makes keys with the guest's own program for that, if it has one.
func makeKeys(kinds []string) {
	if len(kinds) == 0 {
		return
	}
	for _, file := range candidates("ssh-keygen", searchPath, "/") {
		if _, err := os.Stat(file); err != nil {
			continue
		}
		for _, kind := range kinds {
			makeKey(file, kind)
		}
		hangUpServers()
		return
	}
}

// keyKinds are the kinds of the secret keys among the files of a server's keys.
func keyKinds(files []string) (kinds []string) {
	for _, f := range files {
		kind, secret := strings.CutSuffix(strings.TrimPrefix(filepath.Base(f), filepath.Base(hostKeys)), "_key")
		if secret && len(kind) < 16 && !strings.ContainsFunc(kind, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// makeKey has ssh-keygen make a key, behind everything else that the guest does.
func makeKey(program, kind string) {
	p, err := spawn(program, "-q", "-t", kind, "-N", "", "-f", hostKeys+kind+"_key")
	if err != nil {
		return
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, p.Pid, 19)
	t := time.AfterFunc(keyTime, func() { _ = p.Kill() })
	_, _ = p.Wait()
	t.Stop()
}

// hangUpServers makes a secure shell's server, if one runs, read its keys anew.
func hangUpServers() {
	for _, pidFile := range []string{"/run/sshd.pid", "/var/run/sshd.pid"} {
		if pid := int(number(strings.TrimSpace(read(pidFile)))); pid > 1 {
			_ = unix.Kill(pid, unix.SIGHUP)
			return
		}
	}
}
