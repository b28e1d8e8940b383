package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"lodge/internal/base/errs"
)

// PortFree reports whether no process of this host listens on the port, as a
// Conflict that names it if one does. The zero addr stands for every address.
// proto is "tcp" or "udp".
func PortFree(proto string, addr netip.Addr, port uint16) error {
	if port == 0 {
		return errs.Bad("port", "port 0 cannot be forwarded", "choose one from 1 to 65535")
	}
	var tries []string
	switch {
	case addr.IsValid() && addr.Unmap().Is4():
		tries = []string{"4"}
	case addr.IsValid():
		tries = []string{"6"}
	default:
		tries = []string{"4", "6"}
	}
	host := ""
	if addr.IsValid() {
		host = addr.Unmap().String()
	}
	for _, family := range tries {
		err := tryBind(proto, family, net.JoinHostPort(host, strconv.Itoa(int(port))))
		switch {
		case err == nil, !addr.IsValid() && errors.Is(err, syscall.EAFNOSUPPORT):
		case errors.Is(err, syscall.EADDRINUSE):
			return &errs.Error{Kind: errs.Conflict, Field: "port", Err: err,
				Msg:  fmt.Sprintf("port %d/%s of this host is in use by another program", port, proto),
				Hint: fmt.Sprintf("see who has it with: ss -lnp 'sport = :%d'; or choose another port", port)}
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			return &errs.Error{Kind: errs.Invalid, Field: "listen", Err: err,
				Msg:  fmt.Sprintf("%v is no address of this host", addr),
				Hint: "leave it out to listen on every address"}
		default:
			return fmt.Errorf("try port %d/%s: %w", port, proto, err)
		}
	}
	return nil
}

func tryBind(proto, family, address string) error {
	switch proto {
	case "tcp":
		l, err := net.Listen("tcp"+family, address)
		if err != nil {
			return err
		}
		return l.Close()
	case "udp":
		l, err := net.ListenPacket("udp"+family, address)
		if err != nil {
			return err
		}
		return l.Close()
	}
	return errs.Bad("protocol", fmt.Sprintf("%q is no protocol that can be forwarded", proto), "tcp or udp")
}
