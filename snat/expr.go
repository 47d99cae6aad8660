package snat

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// Conntrack states, statuses and directions, as the kernel numbers them.
const (
	ctOriginal = expr.CtDirOriginal
	ctReply    = expr.CtDirReply

	statusDstNAT = 1 << 5 // IPS_DST_NAT

	rejectTCPReset        = 1 // NFT_REJECT_TCP_RST
	rejectICMPX           = 2 // NFT_REJECT_ICMPX_UNREACH
	rejectAdminProhibited = 3 // NFT_REJECT_ICMPX_ADMIN_PROHIBITED
)

// rule is one rule, with the stable name that its comment starts with.
type rule struct {
	name  string
	exprs []expr.Any
}

func newRule(name string, parts ...[]expr.Any) rule {
	return rule{name: name, exprs: slices.Concat(parts...)}
}

// comment is the rule's identity in the kernel: its name, and a hash over what
// it does. Somebody who edits a rule by hand replaces or drops the comment.
func (r rule) comment() (string, error) {
	h := sha256.New()
	for _, e := range r.exprs {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return "", fmt.Errorf("marshalling rule %s: %w", r.name, err)
		}
		h.Write(b)
	}
	return r.name + ":" + hex.EncodeToString(h.Sum(nil)[:4]), nil
}

// field is a packet or connection field that can be part of a set's key.
type field struct {
	width int // bytes
	load  func(reg uint32) expr.Any
}

func saddr(f model.Family) field {
	if f == model.IPv6 {
		return network(8, 16)
	}
	return network(12, 4)
}

func daddr(f model.Family) field {
	if f == model.IPv6 {
		return network(24, 16)
	}
	return network(16, 4)
}

func network(offset, width uint32) field {
	return field{int(width), func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: width}
	}}
}

// ctSaddr is `ct original ip saddr` or `ct reply ip saddr`.
func ctSaddr(f model.Family, direction uint32) field {
	key, width := expr.CtKeySRCIP, 4
	if f == model.IPv6 {
		key, width = expr.CtKeySRCIP6, 16
	}
	return field{width, func(reg uint32) expr.Any {
		return &expr.Ct{Key: key, Register: reg, Direction: direction}
	}}
}

func sport() field { return transport(0) }
func dport() field { return transport(2) }

func transport(offset uint32) field {
	return field{2, func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
	}}
}

func iifname() field { return meta(expr.MetaKeyIIFNAME, unix.IFNAMSIZ) }
func oifname() field { return meta(expr.MetaKeyOIFNAME, unix.IFNAMSIZ) }
func l4proto() field { return meta(expr.MetaKeyL4PROTO, 1) }

func meta(key expr.MetaKey, width int) field {
	return field{width, func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }}
}

// register names the place of a key's byte offset the way nft does: the
// 16-byte registers 1 to 4 where one starts, else a 32-bit register from 8 on.
func register(offset int) uint32 {
	if offset%16 == 0 {
		return uint32(1 + offset/16)
	}
	return uint32(8 + offset/4)
}

// load puts the fields side by side, each padded to four bytes: a set's key.
func load(fields ...field) []expr.Any {
	var out []expr.Any
	offset := 0
	for _, f := range fields {
		out = append(out, f.load(register(offset)))
		offset += (f.width + 3) / 4 * 4
	}
	return out
}

// in is `FIELDS @set`, notIn `FIELDS != @set`.
func in(set string, fields ...field) []expr.Any {
	return append(load(fields...), &expr.Lookup{SourceRegister: 1, SetName: set})
}

func notIn(set string, fields ...field) []expr.Any {
	return append(load(fields...), &expr.Lookup{SourceRegister: 1, SetName: set, Invert: true})
}

// vmap is `FIELDS vmap @set`.
func vmap(set string, fields ...field) []expr.Any {
	return append(load(fields...), &expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true})
}

// lookup is `FIELDS map @set`; the value lands in register 1.
func lookup(set string, fields ...field) []expr.Any {
	return append(load(fields...), &expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true, DestRegister: 1})
}

// ofFamily is `meta nfproto ipv4`. nft hides it before an ip field; without it
// a rule in an inet table would read IPv6 headers as IPv4 ones.
func ofFamily(f model.Family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfproto(f)}},
	}
}

func nfproto(f model.Family) byte {
	if f == model.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// ofProto is `meta l4proto PROTO`.
func ofProto(proto byte) []expr.Any {
	return append(load(l4proto()), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}})
}

// oifIs is `oifname "NAME"`.
func oifIs(name string) []expr.Any {
	return append(load(oifname()), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(name)})
}

// toLoopback is `ip daddr 127.0.0.0/8` or `ip6 daddr ::1`.
func toLoopback(f model.Family) []expr.Any {
	if f == model.IPv6 {
		return append(load(daddr(f)), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append(make([]byte, 15), 1)})
	}
	return isLoopback4(daddr(f))
}

// fromLoopback is `ip saddr 127.0.0.0/8`.
func fromLoopback() []expr.Any { return isLoopback4(saddr(model.IPv4)) }

func isLoopback4(f field) []expr.Any {
	return append(load(f),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127, 0, 0, 0}})
}

// toLocal is `fib daddr type local`.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: n32(unix.RTN_LOCAL)},
	}
}

// direction is `ct direction original` or `ct direction reply`.
func direction(d byte) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{d}},
	}
}

// ctState is `ct state A,B` for the bits of A and B.
func ctState(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATE, bits, expr.CmpOpNeq) }

// ctDNAT is `ct status dnat`, ctNoDNAT `ct status & dnat == 0`.
func ctDNAT() []expr.Any   { return ctBits(expr.CtKeySTATUS, statusDstNAT, expr.CmpOpNeq) }
func ctNoDNAT() []expr.Any { return ctBits(expr.CtKeySTATUS, statusDstNAT, expr.CmpOpEq) }

// ctMarked is `ct mark & MASK != 0`.
func ctMarked(mask model.Mask) []expr.Any { return ctBits(expr.CtKeyMARK, uint32(mask), expr.CmpOpNeq) }

func ctBits(key expr.CtKey, bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		and(bits, 0),
		&expr.Cmp{Op: op, Register: 1, Data: n32(0)},
	}
}

// ctMarkVmap is `ct mark & MASK vmap @set`.
func ctMarkVmap(mask model.Mask, set string) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		and(uint32(mask), 0),
		&expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true},
	}
}

// setMark is `meta mark set meta mark & ~MASK | MARK`.
func setMark(mask model.Mask, mark model.Mark) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		and(^uint32(mask), uint32(mark)),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

// setCtMark is `ct mark set ct mark & ~MASK | MARK`.
func setCtMark(mask model.Mask, mark model.Mark) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		and(^uint32(mask), uint32(mark)),
		&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1},
	}
}

func and(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: n32(mask), Xor: n32(xor)}
}

func n32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// snatTo is `snat ip to` the address in register 1.
func snatTo(f model.Family) []expr.Any {
	return []expr.Any{&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(nfproto(f)), RegAddrMin: 1, RegAddrMax: 1}}
}

// dnatTo is `dnat ip to` the address and port that start at register 1.
func dnatTo(f model.Family) []expr.Any {
	port := register(saddr(f).width)
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(nfproto(f)),
		RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: port, RegProtoMax: port, Specified: true,
	}}
}

// tcpSyn is `tcp flags & (syn|rst) == syn`.
func tcpSyn() []expr.Any {
	const offset, syn, rst = 13, 2, 4
	return append(load(l4proto()),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}})
}

// clamp is `tcp option maxseg size set rt mtu`, which only ever lowers it.
func clamp() []expr.Any {
	const maxseg, offset, width = 2, 2, 2
	return []expr.Any{
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: maxseg, Offset: offset, Len: width, Op: expr.ExthdrOpTcpopt},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// refuse is `reject with icmpx admin-prohibited`.
func refuse() []expr.Any {
	return []expr.Any{&expr.Reject{Type: rejectICMPX, Code: rejectAdminProhibited}}
}

// reset is `reject with tcp reset`.
func reset() []expr.Any { return []expr.Any{&expr.Reject{Type: rejectTCPReset}} }

// count is `counter name "NAME"`.
func count(name string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}
}

// toThisHost is `meta pkttype host`: neither broadcast nor multicast (PACKET_HOST).
func toThisHost() []expr.Any { return equal(meta(expr.MetaKeyPKTTYPE, 1), []byte{0}) }

func accept() []expr.Any { return verdict(expr.VerdictAccept, "") }
func drop() []expr.Any   { return verdict(expr.VerdictDrop, "") }
func leave() []expr.Any  { return verdict(expr.VerdictReturn, "") }

// jumpTo is `goto CHAIN`.
func jumpTo(chain string) []expr.Any { return verdict(expr.VerdictGoto, chain) }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
