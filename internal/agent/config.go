package agent

// Config is what makes a guest with a kernel of its own this guest: the engine
// puts it into the initramfs as ConfigPath, the agent as /init carries it out
// before it hands over to the guest's own init. A copied guest gets a new one
// through Link.Renew while it runs.
type Config struct {
	ID       string            `json:"id"` // of the guest; files are made anew for another one
	Hostname string            `json:"hostname"`
	Machine  string            `json:"machine"` // systemd's machine-id, 32 hexadecimal digits
	Hosts    string            `json:"hosts"`   // content of /etc/hosts
	Resolver string            `json:"resolver"`
	DNS      []string          `json:"dns,omitempty"`
	Domain   string            `json:"domain,omitempty"`
	NICs     []NIC             `json:"nics,omitempty"`
	Init     []string          `json:"init"`              // command line of the first process
	Command  bool              `json:"command,omitempty"` // Init is a program that somebody wants to run, not an operating system's init
	Env      map[string]string `json:"env,omitempty"`
	UserData string            `json:"user_data,omitempty"` // cloud-init, NoCloud
	Base     string            `json:"base"`                // device of the image: "/dev/ubda", or "serial:NAME" of a virtio disk
	Modules  string            `json:"modules,omitempty"`   // device of a layer below the image's, with the kernel's modules, or ""
	Volume   string            `json:"volume"`              // device of the writable layer, likewise
	Channel  string            `json:"channel"`             // the host's line: "/dev/ttyS1", or "port:NAME" of a virtio serial port
	Credit   bool              `json:"credit,omitempty"`    // the line needs flow control of our own
	Mailbox  string            `json:"mailbox,omitempty"`   // device that bulk data passes through beside the line, or ""
	HostKeys []HostKey         `json:"host_keys,omitempty"` // for a new guest's server of the secure shell, if it has none
	Alike    bool              `json:"alike,omitempty"`     // programs that the host runs are laid out in memory alike each time
}

// NIC is a network card and what it is to be called and have.
type NIC struct {
	Name     string   `json:"name"`
	MAC      string   `json:"mac"`
	MTU      int      `json:"mtu,omitempty"`
	Prefixes []string `json:"prefixes,omitempty"` // addresses with their prefix lengths
	Gateways []string `json:"gateways,omitempty"`
}

// ConfigPath is where the agent finds its Config as JSON.
const ConfigPath = "/lodge.json"
