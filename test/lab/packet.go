package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Kind is the network protocol of a frame.
type Kind string

// The kinds that a sniffer looks into; all others are counted with their source MAC only.
const (
	IPv4  Kind = "ip4"
	IPv6  Kind = "ip6"
	ARP   Kind = "arp"
	Other Kind = "other"
)

// Packet is what a sniffer keeps of packets that the host sent: one flow's packets with equal flags.
type Packet struct {
	NIC          string
	Kind         Kind
	SrcMAC       string
	Src, Dst     netip.Addr // for ARP: sender and target address
	Proto        uint8      // IP protocol number; for ARP the operation
	SPort, DPort uint16     // for ICMP: type and code
	Flags        uint8      // TCP flags as on the wire
}

// Flow is a Packet with how often and when it was seen.
type Flow struct {
	Packet
	Count       int
	First, Last time.Time
}

// TCP flags of Packet.Flags.
const (
	FlagFIN uint8 = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
)

// IP protocol numbers of Packet.Proto.
const (
	ProtoICMP   uint8 = 1
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoICMPv6 uint8 = 58
)

// String prints a packet for test failures.
func (p Packet) String() string {
	switch p.Kind {
	case ARP:
		return fmt.Sprintf("%s arp op %d %s asks/tells %s (%s)", p.NIC, p.Proto, p.Src, p.Dst, p.SrcMAC)
	case Other:
		return fmt.Sprintf("%s unknown frame (%s)", p.NIC, p.SrcMAC)
	}
	s := fmt.Sprintf("%s %s proto %d %s → %s", p.NIC, p.Kind, p.Proto, netip.AddrPortFrom(p.Src, p.SPort), netip.AddrPortFrom(p.Dst, p.DPort))
	if p.Proto == ProtoTCP {
		s += " " + flagText(p.Flags)
	}
	return s + " (" + p.SrcMAC + ")"
}

func flagText(flags uint8) string {
	var b strings.Builder
	for i, letter := range "FSRPA" {
		if flags&(1<<i) != 0 {
			b.WriteRune(letter)
		}
	}
	return b.String()
}

// String adds count and time.
func (f Flow) String() string {
	return fmt.Sprintf("%s ×%d, first %s, last %s", f.Packet, f.Count, f.First.Format("15:04:05.000"), f.Last.Format("15:04:05.000"))
}

const etherLen = 14

// parse reads as much of an Ethernet frame as a sniffer keeps.
func parse(nic string, frame []byte) Packet {
	p := Packet{NIC: nic, Kind: Other}
	if len(frame) < etherLen {
		return p
	}
	p.SrcMAC = net.HardwareAddr(frame[6:12]).String()
	body := frame[etherLen:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		if len(body) < 20 {
			break
		}
		p.Kind, p.Proto = IPv4, body[9]
		p.Src, p.Dst = addr4(body[12:]), addr4(body[16:])
		if head := int(body[0]&0xf) * 4; binary.BigEndian.Uint16(body[6:])&0x1fff == 0 && len(body) >= head {
			p.ports(body[head:])
		}
	case 0x86dd:
		if len(body) < 40 {
			break
		}
		p.Kind = IPv6
		p.Src, p.Dst = netip.AddrFrom16([16]byte(body[8:24])), netip.AddrFrom16([16]byte(body[24:40]))
		next, rest := skipExtensions(body[6], body[40:])
		p.Proto = next
		p.ports(rest)
	case 0x0806:
		if len(body) < 28 {
			break
		}
		p.Kind, p.Proto = ARP, body[7]
		p.SrcMAC = net.HardwareAddr(body[8:14]).String()
		if !bytes.Equal(frame[6:12], body[8:14]) {
			p.SrcMAC = net.HardwareAddr(frame[6:12]).String() + "/" + p.SrcMAC
		}
		p.Src, p.Dst = addr4(body[14:]), addr4(body[24:])
	}
	return p
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b[:4])) }

// skipExtensions steps over the IPv6 headers that may stand before the transport's.
func skipExtensions(next uint8, b []byte) (uint8, []byte) {
	for (next == 0 || next == 43 || next == 60) && len(b) >= 8 {
		size := 8 + int(b[1])*8
		if len(b) < size {
			return next, nil
		}
		next, b = b[0], b[size:]
	}
	return next, b
}

func (p *Packet) ports(b []byte) {
	switch p.Proto {
	case ProtoTCP, ProtoUDP:
		if len(b) < 4 {
			return
		}
		p.SPort, p.DPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		if p.Proto == ProtoTCP && len(b) >= 14 {
			p.Flags = b[13]
		}
	case ProtoICMP, ProtoICMPv6:
		if len(b) >= 2 {
			p.SPort, p.DPort = uint16(b[0]), uint16(b[1])
		}
	}
}
