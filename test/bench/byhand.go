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
	"lodge/internal/base/session"
	"lodge/internal/kernels"
	"lodge/internal/layer"
)

// byHand starts QEMU as a person would who has the kernel, the initramfs and the
// image that Lodge's guests have: what a cold boot costs without Lodge.
type byHand struct {
	dir, kernel, base string
	modules           string // all of the kernel's, as the layer that Lodge's guests have them in
}

// handBoots are what boots by hand took.
type handBoots struct {
	ready Samples // from QEMU's start until the guest's init said that it is up
	first Samples // of the first program run in a guest
	later Samples // of further ones
}

// laterExecs is how many programs are run after the first one.
const laterExecs = 6

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
	h.kernel, h.modules = boot.Path, boot.Modules
	for _, with := range []bool{false, true} {
		if err := h.writeInitrd(boot.Initrd, with); err != nil {
			return h, err
		}
	}
	h.base = filepath.Join(h.dir, "base.erofs")
	_, err = s.lodge(ctx, "image", "export", "debian/12", h.base, "--format", "erofs")
	return h, err
}

// writeInitrd makes the initramfs of guests with the kernel's modules or without.
func (h byHand) writeInitrd(from string, modules bool) error {
	c := agent.Config{
		ID: "byhand", Hostname: "byhand", Machine: fmt.Sprintf("%032x", 1), Init: []string{"/sbin/init"},
		Base: "serial:base", Volume: "serial:volume", Channel: "port:agent",
	}
	if modules {
		c.Modules = "serial:modules"
	}
	config, err := initrd.ConfigArchive(c)
	if err != nil {
		return err
	}
	archive, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(h.initrd(modules), append(archive, config...), 0o600)
}

func (h byHand) initrd(modules bool) string {
	return filepath.Join(h.dir, fmt.Sprintf("initrd-modules-%t", modules))
}

// boot boots a guest with the processor that Lodge's guests have, with the
// kernel's modules or without, runs programs in it, and adds what it took.
func (h byHand) boot(ctx context.Context, modules bool, took *handBoots) error {
	run, err := os.MkdirTemp(h.dir, "run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(run)
	if err := layer.Create(ctx, run, 1<<30); err != nil {
		return err
	}
	socket := filepath.Join(run, "agent")
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	argv := []string{"-machine", "q35", "-cpu", "max", "-accel", "tcg", "-m", "256M", "-display", "none", "-vga", "none",
		"-nodefaults", "-no-user-config", "-kernel", h.kernel, "-initrd", h.initrd(modules), "-append", "console=ttyS0 quiet", "-serial", "file:" + filepath.Join(run, "console"),
		"-drive", "if=none,id=base,format=raw,readonly=on,file.locking=off,file=" + h.base, "-device", "virtio-blk-pci,drive=base,serial=base",
		"-drive", "if=none,id=volume,format=raw,file=" + filepath.Join(run, "root.ext4"), "-device", "virtio-blk-pci,drive=volume,serial=volume",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,server=on,wait=off,path=" + socket, "-device", "virtserialport,chardev=agent,name=agent"}
	if modules {
		argv = append(argv, "-drive", "if=none,id=modules,format=raw,readonly=on,file.locking=off,file="+h.modules, "-device", "virtio-blk-pci,drive=modules,serial=modules")
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	var line io.ReadWriteCloser
	err = until(ctx, "QEMU listens", bootLimit, func() (err error) {
		line, err = net.Dial("unix", socket)
		return err
	})
	if err != nil {
		return err
	}
	link := dial.Open(line, dial.Options{})
	defer link.Close()
	err = until(ctx, "the guest is ready", bootLimit, func() error {
		if s := link.State(); !s.Ready {
			return fmt.Errorf("the agent says %+v", s)
		}
		return nil
	})
	if err != nil {
		return err
	}
	took.ready.add(time.Since(begun))
	return runPrograms(ctx, link, took)
}

// runPrograms runs programs over a line that is open, and adds what each took.
func runPrograms(ctx context.Context, link *dial.Link, took *handBoots) error {
	for i := range 1 + laterExecs {
		begun := time.Now()
		p, err := link.Exec(ctx, session.Request{Argv: []string{"true"}})
		if err != nil {
			return err
		}
		if _, err := p.Wait(ctx); err != nil {
			return err
		}
		if i > 0 {
			took.later.add(time.Since(begun))
			continue
		}
		took.first.add(time.Since(begun))
		time.Sleep(settle) // the boot's last services still start
	}
	return nil
}
