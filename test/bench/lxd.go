package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// peerImage is the name that LXD has Lodge's busybox under.
const peerImage = "busybox"

// lxd is a daemon of LXD with everything of its own. Its guests get the same
// root tree as Lodge's, in a pool of the same kind, but no network: that would
// need more of the host than the sandbox has.
type lxd struct {
	b       *bench
	dir     string
	env     []string
	service *service
	stopped bool
}

// startLXD starts the daemon and gives it the image that s has.
func (b *bench) startLXD(ctx context.Context, s *server) (*lxd, error) {
	if _, err := exec.LookPath("lxd"); err != nil {
		return nil, err
	}
	l := &lxd{b: b, dir: filepath.Join(b.dir, "lxd")}
	home := filepath.Join(b.dir, "lxd-home")
	for _, d := range []string{l.dir, home} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	// The proxy is dead: it shall not look for images on the Internet.
	l.env = []string{"LXD_DIR=" + l.dir, "HOME=" + home, "HTTP_PROXY=http://127.0.0.1:9", "HTTPS_PROXY=http://127.0.0.1:9"}
	var err error
	if l.service, err = serve(filepath.Join(b.dir, "lxd.log"), l.env, "lxd", "--logfile", filepath.Join(l.dir, "log")); err != nil {
		return nil, err
	}
	b.later(l.stop)
	err = until(ctx, "lxd answers", time.Minute, func() error {
		if err := l.service.failed(); err != nil {
			return err
		}
		_, err := l.lxc(ctx, "query", "/1.0")
		return err
	})
	if err == nil {
		err = l.fill(ctx, s)
	}
	if err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

// fill makes a pool, imports the image and uses it once, which unpacks it.
func (l *lxd) fill(ctx context.Context, s *server) error {
	meta, root := filepath.Join(l.dir, "bench-meta"), filepath.Join(l.dir, "bench-root.tar")
	if err := os.MkdirAll(meta, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(meta, "metadata.yaml"), []byte("architecture: x86_64\ncreation_date: 1700000000\n"), 0o644); err != nil {
		return err
	}
	if _, err := command(ctx, nil, "tar", "-C", meta, "-cf", meta+".tar", "metadata.yaml"); err != nil {
		return err
	}
	if _, err := s.lodge(ctx, "image", "export", "busybox", root); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"storage", "create", "bench", "btrfs", "size=8GiB"},
		{"profile", "device", "add", "default", "root", "disk", "path=/", "pool=bench"},
		{"image", "import", meta + ".tar", root, "--alias", peerImage},
		{"init", peerImage, l.b.tag + "-warm"},
		{"delete", l.b.tag + "-warm"},
	} {
		if _, err := l.lxc(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (l *lxd) lxc(ctx context.Context, args ...string) (string, error) {
	return command(ctx, l.env, append([]string{"lxc"}, args...)...)
}

// stop ends the daemon and its guests. Its files go with the directory.
func (l *lxd) stop() {
	if l.stopped {
		return
	}
	l.stopped = true
	if _, err := command(context.Background(), l.env, "lxd", "shutdown", "--timeout", "20"); err != nil {
		l.b.say("lxd: %v", err)
	}
	l.service.end()
	// What it mounted below its directory would be in the way of removing it.
	for range 8 {
		if _, err := command(context.Background(), nil, "sh", "-c", fmt.Sprintf("awk '$5 ~ \"^%s/\" {print $5}' /proc/self/mountinfo | sort -r | xargs -r umount -l", l.dir)); err != nil {
			break
		}
	}
}

func (l *lxd) tool() *tool {
	t := newTool("lxd", l.lxc)
	verb := func(args ...string) func(string) []string {
		return func(name string) []string { return append(append([]string{}, args...), name) }
	}
	t.launch = verb("launch", peerImage)
	t.exec = func(name string) []string { return []string{"exec", name, "--", "true"} }
	t.pause, t.resume, t.stop, t.remove = verb("pause"), verb("start"), verb("stop", "--force"), verb("delete")
	return t
}
