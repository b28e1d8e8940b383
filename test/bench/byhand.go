package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"lodge/internal/agent"
	"lodge/internal/agent/dial"
	"lodge/internal/agent/initrd"
	"lodge/internal/kernels"
	"lodge/internal/layer"
)

// byHand starts QEMU as a person would who has the kernel, the initramfs and the
// image that Lodge's guests have: what a cold boot costs without Lodge.
type byHand struct {
	dir, kernel, initrd, base string
}

// newByHand takes the kernel and the image from a server that has them.
func (b *bench) newByHand(ctx context.Context, s *server) (byHand, error) {
	h := byHand{dir: filepath.Join(b.dir, "byhand")}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return h, err
	}
	store := filepath.Join(h.dir, "kernels")
	if _, err := command(ctx, nil, "cp", "-a", filepath.Join(s.dir, "data/kernels"), store); err != nil {
		return h, err
	}
	k, err := kernels.OpenStore(store, filepath.Join("internal/daemon/embedded", "lodge-agent"), slog.New(slog.DiscardHandler))
	if err != nil {
		return h, err
	}
	boot, err := k.Boot(ctx, "linux/debian-12")
	if err != nil {
		return h, err
	}
	h.kernel = boot.Path
	config, err := initrd.ConfigArchive(agent.Config{
		ID: "byhand", Hostname: "byhand", Machine: fmt.Sprintf("%032x", 1), Init: []string{"/sbin/init"},
		Base: "serial:base", Volume: "serial:volume", Channel: "port:agent",
	})
	if err != nil {
		return h, err
	}
	archive, err := os.ReadFile(boot.Initrd)
	if err != nil {
		return h, err
	}
	h.initrd = filepath.Join(h.dir, "initrd")
	if err := os.WriteFile(h.initrd, append(archive, config...), 0o600); err != nil {
		return h, err
	}
	h.base = filepath.Join(h.dir, "base.erofs")
	_, err = s.lodge(ctx, "image", "export", "debian/12", h.base, "--format", "erofs")
	return h, err
}

// boot boots a guest with the processor that Lodge's guests have and returns how
// long it took until its init said that it is up.
func (h byHand) boot(ctx context.Context) (time.Duration, error) {
	run, err := os.MkdirTemp(h.dir, "run-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(run)
	if err := layer.Create(ctx, run, 1<<30); err != nil {
		return 0, err
	}
	socket := filepath.Join(run, "agent")
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-accel", "tcg", "-m", "256M", "-display", "none", "-vga", "none",
		"-nodefaults", "-no-user-config", "-kernel", h.kernel, "-initrd", h.initrd, "-append", "console=ttyS0 quiet", "-serial", "file:"+filepath.Join(run, "console"),
		"-drive", "if=none,id=base,format=raw,readonly=on,file.locking=off,file="+h.base, "-device", "virtio-blk-pci,drive=base,serial=base",
		"-drive", "if=none,id=volume,format=raw,file="+filepath.Join(run, "root.ext4"), "-device", "virtio-blk-pci,drive=volume,serial=volume",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,server=on,wait=off,path="+socket, "-device", "virtserialport,chardev=agent,name=agent")
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	var line io.ReadWriteCloser
	err = until(ctx, "QEMU listens", bootLimit, func() (err error) {
		line, err = net.Dial("unix", socket)
		return err
	})
	if err != nil {
		return 0, err
	}
	link := dial.Open(line, dial.Options{})
	defer link.Close()
	err = until(ctx, "the guest is ready", bootLimit, func() error {
		if s := link.State(); !s.Ready {
			return fmt.Errorf("the agent says %+v", s)
		}
		return nil
	})
	return time.Since(begun), err
}
