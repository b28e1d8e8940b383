package qemu

import (
	"syscall"

	"lodge/internal/agent"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// poweredOff is how a machine's end by its own wish is told (reboot(2)).
const poweredOff = syscall.SIGINT

// config tells the agent which guest it is in and where its disks are.
func config(g guest.Guest, parts engine.Parts) agent.Config {
	c := engine.AgentConfig(g, parts)
	c.Base, c.Volume, c.Channel = "serial:"+baseSerial, "serial:"+volumeSerial, "port:"+agentPort
	if parts.Kernel.Modules != "" {
		c.Modules = "serial:" + modulesSerial
	}
	return c
}

func (b *builder) config() agent.Config { return config(b.g, b.parts) }
