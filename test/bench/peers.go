package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// peer is another program that makes guests, run in a thread of its own.
type peer struct {
	name    string
	note    string
	runtime guestRuntime
	work    chan func()
}

// inside runs f in the peer's thread and mount namespace.
func (p *peer) inside(f func() error) error {
	done := make(chan error)
	p.work <- func() { done <- f() }
	return <-done
}

// startPeers returns those peers that are installed.
func (b *bench) startPeers(image, work string) (all []*peer) {
	for _, p := range []*peer{
		{name: "crun", runtime: oci{"crun", image, work, b.tag}, note: "cgroup v2 hidden from it: it refuses this layout"},
		{name: "runc", runtime: oci{"runc", image, work, b.tag}},
		{name: "lxc-start", runtime: lxc{image, work, b.tag}},
	} {
		if _, err := exec.LookPath(p.name); err != nil {
			b.report.skip("%s is not installed", p.name)
			continue
		}
		if err := p.open(p.name == "crun"); err != nil {
			b.report.skip("%s: %v", p.name, err)
			continue
		}
		b.later(func() { close(p.work) })
		all = append(all, p)
	}
	return all
}

// open starts the peer's thread. With hide it does not see cgroup v2 beside v1,
// which crun takes for a broken host.
func (p *peer) open(hide bool) error {
	const beside = "/sys/fs/cgroup/unified"
	hide = hide && unix.Access(beside, unix.F_OK) == nil
	if !hide {
		p.note = ""
	}
	p.work = make(chan func())
	up := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		var err error
		if hide {
			err = errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Unmount(beside, unix.MNT_DETACH))
		}
		up <- err
		for f := range p.work {
			f()
		}
	}()
	return <-up
}

// mountRoot makes the root that these programs want to find on the host. It is
// the guest's root's own, as far as it can be.
func mountRoot(image, dir string, idBase uint32) (string, error) {
	upper, root := filepath.Join(dir, "upper"), filepath.Join(dir, "root")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Chown(upper, int(idBase), int(idBase))); err != nil {
		return "", err
	}
	options := "lowerdir=" + image + ",upperdir=" + upper + ",workdir=" + filepath.Join(dir, "work")
	return root, unix.Mount("overlay", root, "overlay", unix.MS_NODEV, options)
}

func unmountRoot(dir string) error {
	err := unix.Unmount(filepath.Join(dir, "root"), unix.MNT_DETACH)
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil // it was never mounted
	}
	return err
}

// oci drives a program with the command line that runc made usual.
type oci struct{ program, image, work, tag string }

func (o oci) state() string { return filepath.Join(o.work, "state-"+o.program) }

func (o oci) start(ctx context.Context, id, dir string, idBase uint32) error {
	root, err := mountRoot(o.image, dir, idBase)
	if err != nil {
		return err
	}
	text, err := json.Marshal(o.config(root, id, idBase))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		return err
	}
	return quietly(ctx, o.program, "--root", o.state(), "run", "-d", "--bundle", dir, id)
}

func (o oci) stop(ctx context.Context, id, dir string) error {
	return errors.Join(quietly(ctx, o.program, "--root", o.state(), "delete", "-f", id), unmountRoot(dir))
}

type object = map[string]any

// config asks for what Lodge's guests have too: all namespaces, a range of ids,
// limits, few capabilities, a seccomp filter.
func (o oci) config(root, id string, idBase uint32) object {
	mount := func(to, kind string, options ...string) object {
		return object{"destination": to, "type": kind, "source": kind, "options": options}
	}
	var namespaces []object
	for _, n := range []string{"pid", "network", "ipc", "uts", "mount", "user", "cgroup"} {
		namespaces = append(namespaces, object{"type": n})
	}
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_KILL", "CAP_SYS_BOOT"}
	mapping := []object{{"containerID": 0, "hostID": idBase, "size": idCount}}
	return object{
		"ociVersion": "1.0.2",
		"process": object{
			"terminal": false, "user": object{"uid": 0, "gid": 0}, "args": firstProgram(), "env": []string{"PATH=/sbin:/bin"}, "cwd": "/",
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"root":     object{"path": root},
		"hostname": "guest",
		"mounts": []object{
			mount("/proc", "proc", "nosuid", "noexec", "nodev"), mount("/dev", "tmpfs", "nosuid", "mode=755", "size=65536k"),
			mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
			mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777"), mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
			mount("/sys", "sysfs", "nosuid", "noexec", "nodev"), mount("/run", "tmpfs", "nosuid", "nodev", "mode=755"),
		},
		"linux": object{
			"cgroupsPath": "/" + o.tag + "-" + o.program + "/" + id, "uidMappings": mapping, "gidMappings": mapping, "namespaces": namespaces,
			"resources":   object{"memory": object{"limit": memory512}, "cpu": object{"quota": 100000, "period": 100000}, "pids": object{"limit": 1000}},
			"maskedPaths": []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"}, "readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"},
			"seccomp": object{"defaultAction": "SCMP_ACT_ALLOW", "architectures": []string{"SCMP_ARCH_" + strings.ToUpper(scmpArch())}, "syscalls": []object{{
				"names":  []string{"kexec_load", "init_module", "finit_module", "delete_module", "open_by_handle_at", "swapon", "swapoff", "kexec_file_load", "bpf"},
				"action": "SCMP_ACT_ERRNO",
			}}},
		},
	}
}

func scmpArch() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}

// lxc drives lxc-start, with a range of ids.
type lxc struct{ image, work, tag string }

func (l lxc) start(ctx context.Context, id, dir string, idBase uint32) error {
	root, err := mountRoot(l.image, dir, idBase)
	if err != nil {
		return err
	}
	config := []string{
		"lxc.rootfs.path = dir:" + root, "lxc.uts.name = guest", "lxc.init.cmd = /ready.sh", "lxc.mount.auto = proc:mixed sys:mixed",
		"lxc.autodev = 1", "lxc.net.0.type = empty", "lxc.pty.max = 1024", "lxc.mount.entry = tmpfs run tmpfs nosuid,nodev,mode=755 0 0",
		fmt.Sprintf("lxc.cgroup.memory.limit_in_bytes = %d", memory512), "lxc.cgroup.cpu.cfs_quota_us = 100000", "lxc.cgroup.pids.max = 1000",
		"lxc.cgroup.dir = " + l.tag + "-lxc/" + id, "lxc.apparmor.profile = unconfined", "lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp",
		"lxc.cap.drop = sys_module mac_admin mac_override sys_time",
		fmt.Sprintf("lxc.idmap = u 0 %d %d", idBase, idCount), fmt.Sprintf("lxc.idmap = g 0 %d %d", idBase, idCount),
	}
	// It splits its command at blanks, so what the others pass as arguments is
	// a file here.
	script := "#!/bin/sh\n" + firstProgram()[2] + "\n"
	path := filepath.Join(dir, "config")
	if err := errors.Join(os.WriteFile(path, []byte(strings.Join(config, "\n")+"\n"), 0o644), os.WriteFile(filepath.Join(l.image, "ready.sh"), []byte(script), 0o755)); err != nil {
		return err
	}
	return quietly(ctx, "lxc-start", "-n", id, "-P", l.work, "-f", path, "-d", "-l", "error", "-o", filepath.Join(dir, "log"))
}

func (l lxc) stop(ctx context.Context, id, dir string) error {
	err := quietly(ctx, "lxc-stop", "-k", "-n", id, "-P", l.work)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		err = fmt.Errorf("%w: %s", err, log[:min(len(log), 500)])
	}
	return errors.Join(err, unmountRoot(dir))
}

// quietly runs a program whose descendants outlive it: what it says goes to a
// file, since a pipe would stay open as long as they run.
func quietly(ctx context.Context, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	said, err := os.CreateTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.Remove(said.Name())
	defer said.Close()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, text[:min(len(text), 500)])
	}
	return nil
}
