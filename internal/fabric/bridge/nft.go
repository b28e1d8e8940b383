package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nft is a connection to nf_tables. A batch is built under mu and sent whole:
// the kernel takes all of it or nothing.
type nft struct {
	mu   sync.Mutex
	conn *nftables.Conn
}

func openNFT() (*nft, error) {
	c, err := dialNFT()
	if err != nil {
		return nil, err
	}
	return &nft{conn: c}, nil
}

// dialNFT asks for socket buffers of 4 MiB: with the usual ones a batch of some
// 1,000 elements ends in ENOBUFS (google/nftables issues 103 and 350).
func dialNFT() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		if err := c.SetReadBuffer(4 << 20); err != nil {
			return err
		}
		return c.SetWriteBuffer(4 << 20)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	return c, nil
}

func (c *nft) close() error { return c.conn.CloseLasting() }

// batch sends what build queues as one transaction. After a failure answers to
// it may still be on their way, so the connection is made anew.
func (c *nft) batch(what string, build func(*nftables.Conn) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := build(c.conn)
	if err == nil {
		err = c.conn.Flush()
	}
	if err == nil {
		return nil
	}
	if fresh, dialed := dialNFT(); dialed == nil {
		err = errors.Join(err, c.conn.CloseLasting())
		c.conn = fresh
	}
	return fmt.Errorf("nf_tables: %s: %w", what, err)
}

// deleteTables removes both tables of a network; absent ones are no error.
func (c *nft) deleteTables(name string) error {
	var failed []error
	for _, f := range []nftables.TableFamily{nftables.TableFamilyBridge, nftables.TableFamilyINet} {
		err := c.batch("delete table "+name, func(c *nftables.Conn) error {
			c.DelTable(&nftables.Table{Family: f, Name: name})
			return nil
		})
		if !errors.Is(err, syscall.ENOENT) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// layout collects one table's sets and chains and queues them so that sets keep
// their elements and chains get exactly the new rules.
type layout struct {
	c     *nftables.Conn
	table *nftables.Table
	sets  uint32
	err   error
}

func (l *layout) set(s *nftables.Set) {
	// An id of our own: the library's counter is a global without a lock.
	l.sets++
	s.ID = l.sets
	s.Table = l.table
	l.err = errors.Join(l.err, l.c.AddSet(s, nil))
}

func (l *layout) chain(ch *nftables.Chain, rules ...[]expr.Any) {
	ch.Table = l.table
	l.c.AddChain(ch)
	l.c.FlushChain(ch)
	for _, r := range rules {
		l.c.AddRule(&nftables.Rule{Table: l.table, Chain: ch, Exprs: r})
	}
}

// Registers. The four of 16 bytes and the sixteen of 4 bytes are the same
// storage: the second part of a concatenation stands where the first, rounded
// up to 4 bytes, ends.
const (
	reg1     = unix.NFT_REG_1
	reg2     = unix.NFT_REG_2
	reg32x01 = unix.NFT_REG32_01
	reg32x02 = unix.NFT_REG32_02
	reg32x05 = unix.NFT_REG32_05
)

// rule joins pieces into one rule.
func rule(pieces ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range pieces {
		out = append(out, p...)
	}
	return out
}

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func verdict(k expr.VerdictKind) []expr.Any { return one(&expr.Verdict{Kind: k}) }

func jump(chain string) []expr.Any {
	return one(&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain})
}

func ifname(dev string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, dev)
	return b
}

func meta(key expr.MetaKey, reg uint32) []expr.Any {
	return one(&expr.Meta{Key: key, Register: reg})
}

func metaIs(key expr.MetaKey, data []byte) []expr.Any {
	return rule(meta(key, reg1), cmp(expr.CmpOpEq, data))
}

func iif(dev string) []expr.Any { return metaIs(expr.MetaKeyIIFNAME, ifname(dev)) }
func oif(dev string) []expr.Any { return metaIs(expr.MetaKeyOIFNAME, ifname(dev)) }
func oifNot(dev string) []expr.Any {
	return rule(meta(expr.MetaKeyOIFNAME, reg1), cmp(expr.CmpOpNeq, ifname(dev)))
}

func cmp(op expr.CmpOp, data []byte) []expr.Any {
	return one(&expr.Cmp{Op: op, Register: reg1, Data: data})
}

func load(base expr.PayloadBase, offset, length, reg uint32) []expr.Any {
	return one(&expr.Payload{OperationType: expr.PayloadLoad, Base: base, Offset: offset, Len: length, DestRegister: reg})
}

func fieldIs(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return rule(load(base, offset, uint32(len(data)), reg1), cmp(expr.CmpOpEq, data))
}

func in(set string) []expr.Any { return one(&expr.Lookup{SourceRegister: reg1, SetName: set}) }
func notIn(set string) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg1, SetName: set, Invert: true})
}

func mapped(set string) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: set})
}

func family(f byte) []expr.Any { return metaIs(expr.MetaKeyNFPROTO, []byte{f}) }

func masked(length uint32, mask []byte) []expr.Any {
	return one(&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: length, Mask: mask, Xor: make([]byte, length)})
}

// within compares the network header's source (src) or destination with p. It
// looks at the family first, because offsets mean nothing without it.
func within(p netip.Prefix, src bool, op expr.CmpOp) []expr.Any {
	offset, size, fam := uint32(16), uint32(4), byte(unix.NFPROTO_IPV4)
	if p.Addr().Is6() {
		offset, size, fam = 24, 16, unix.NFPROTO_IPV6
	}
	if src {
		offset -= size
	}
	return rule(family(fam), load(expr.PayloadBaseNetworkHeader, offset, size, reg1),
		masked(size, ipNet(p).Mask), cmp(op, p.Masked().Addr().AsSlice()))
}

// ctHas matches when a bit of the connection's state or status is set.
func ctHas(key expr.CtKey, bits uint32) []expr.Any {
	return rule(one(&expr.Ct{Key: key, Register: reg1}),
		masked(4, binary.NativeEndian.AppendUint32(nil, bits)), cmp(expr.CmpOpNeq, make([]byte, 4)))
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// part pads one part of a concatenated key to whole registers.
func part(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
