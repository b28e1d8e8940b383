package qemu

import (
	"syscall"

	"lodge/internal/agent"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// poweredOff is how a machine's end by its own wish is told (reboot(2)).
const poweredOff = syscall.SIGINT

// brokenOff is the exit status of a guest whose machine was reset or switched off
// while its kernel did not mean to end.
const brokenOff = 1

// config tells the agent which guest it is in and where its disks are.
func config(g guest.Guest, parts engine.Parts) agent.Config {
	c := engine.AgentConfig(g, parts)
	c.Base, c.Volume, c.Channel = "serial:"+baseSerial, "serial:"+volumeSerial, "port:"+agentPort
	if parts.Kernel.Modules != "" {
		c.Modules = "serial:" + modulesSerial
	}
	return c
}

// config is that of a guest that is about to start. QEMU keeps what it translated
// by where it was: a program that lies elsewhere each time, as is usual, is
// translated each time, which takes most of the time that a short one runs.
func (b *builder) config() agent.Config {
	c := config(b.g, b.parts)
	c.Alike = b.w.Accel == "tcg"
	return c
}
