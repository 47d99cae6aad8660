//go:build linux

package nicdial

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// route is a netlink socket that asks the kernel about links, addresses, rules
// and routes. It changes nothing, and anybody may ask.
type route struct {
	fd  int
	seq uint32
}

func openRoute() (*route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("nicdial: asking the kernel: %w", err)
	}
	return &route{fd: fd}, nil
}

func (r *route) close() { _ = unix.Close(r.fd) }

// attr is one attribute of a request.
type attr struct {
	kind  uint16
	value []byte
}

func u32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// ask sends one request and returns the answers.
func (r *route) ask(kind, flags uint16, header []byte, attrs ...attr) ([]syscall.NetlinkMessage, error) {
	r.seq++
	body := slices.Clone(header)
	for _, a := range attrs {
		body = binary.NativeEndian.AppendUint16(body, uint16(unix.SizeofRtAttr+len(a.value)))
		body = binary.NativeEndian.AppendUint16(body, a.kind)
		body = append(body, a.value...)
		for len(body)%unix.RTA_ALIGNTO != 0 {
			body = append(body, 0)
		}
	}
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|flags)
	msg = binary.NativeEndian.AppendUint32(msg, r.seq)
	msg = append(append(msg, 0, 0, 0, 0), body...)
	if err := unix.Sendto(r.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("nicdial: asking the kernel: %w", err)
	}
	var out []syscall.NetlinkMessage
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("nicdial: reading the kernel's answer: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(slices.Clone(buf[:n]))
		if err != nil {
			return nil, fmt.Errorf("nicdial: reading the kernel's answer: %w", err)
		}
		for _, m := range msgs {
			switch {
			case m.Header.Seq != r.seq:
			case m.Header.Type == unix.NLMSG_DONE:
				return out, nil
			case m.Header.Type == unix.NLMSG_ERROR:
				if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
					return nil, unix.Errno(-code)
				}
				return out, nil
			default:
				out = append(out, m)
				if flags&unix.NLM_F_DUMP == 0 {
					return out, nil
				}
			}
		}
	}
}

// attrsOf splits what follows the header of a message.
func attrsOf(m syscall.NetlinkMessage, header int) map[uint16][]byte {
	out := make(map[uint16][]byte)
	for b := m.Data[min(header, len(m.Data)):]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		out[binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = b[unix.SizeofRtAttr:size]
		b = b[min((size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(b)):]
	}
	return out
}

type link struct {
	name  string
	index int
	mac   net.HardwareAddr
}

// links lists the link of that name, or all links where the name is empty.
func (r *route) links(name string) ([]link, error) {
	var flags uint16 = unix.NLM_F_DUMP
	var attrs []attr
	if name != "" {
		flags, attrs = 0, []attr{{unix.IFLA_IFNAME, append([]byte(name), 0)}}
	}
	msgs, err := r.ask(unix.RTM_GETLINK, flags, make([]byte, unix.SizeofIfInfomsg), attrs...)
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nicdial: listing links: %w", err)
	}
	var out []link
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		a := attrsOf(m, unix.SizeofIfInfomsg)
		out = append(out, link{
			name:  unix.ByteSliceToString(a[unix.IFLA_IFNAME]),
			index: int(int32(binary.NativeEndian.Uint32(m.Data[4:]))),
			mac:   a[unix.IFLA_ADDRESS],
		})
	}
	return out, nil
}

type address struct {
	index int
	addr  netip.Addr
}

// addrs lists the addresses that packets to the world can leave with. Of each
// family, that to leave with comes first among a link's.
func (r *route) addrs() ([]address, error) {
	msgs, err := r.ask(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return nil, fmt.Errorf("nicdial: listing addresses: %w", err)
	}
	var out []address
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		// In IPv4 the bit of IFA_F_TEMPORARY means IFA_F_SECONDARY.
		const bad = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
		a := attrsOf(m, unix.SizeofIfAddrmsg)
		flags := uint32(m.Data[2])
		if f := a[unix.IFA_FLAGS]; len(f) == 4 {
			flags = binary.NativeEndian.Uint32(f)
		}
		raw := a[unix.IFA_LOCAL]
		if raw == nil {
			raw = a[unix.IFA_ADDRESS]
		}
		addr, ok := netip.AddrFromSlice(raw)
		if !ok || m.Data[3] != unix.RT_SCOPE_UNIVERSE || !addr.IsGlobalUnicast() || addr.Is6() && flags&bad != 0 {
			continue
		}
		out = append(out, address{index: int(binary.NativeEndian.Uint32(m.Data[4:])), addr: addr})
	}
	return oldestFirst(out), nil
}

// oldestFirst orders the addresses as eipnet does: in IPv4 the kernel lists a
// link's main ones before its secondary ones; in IPv6 it lists the newest first,
// and a private one (fd00::/8) leads nowhere if there is another.
func oldestFirst(addrs []address) []address {
	var v4, v6, private []address
	for _, a := range addrs {
		switch {
		case a.addr.Is4():
			v4 = append(v4, a)
		case a.addr.IsPrivate():
			private = append(private, a)
		default:
			v6 = append(v6, a)
		}
	}
	slices.Reverse(v6)
	slices.Reverse(private)
	return slices.Concat(v4, v6, private)
}

// way asks for the kind of route (RTN_UNICAST, RTN_LOCAL, …; 0: there is none)
// to dst; from src and by the device unless they are zero. The kernel's answer
// without RTM_F_FIB_MATCH would be "on the link" where there is no route.
func (r *route) way(src, dst netip.Addr, index int, mark uint32) (kind byte, err error) {
	header := make([]byte, unix.SizeofRtMsg)
	header[0], header[1] = family(dst), byte(dst.BitLen())
	binary.NativeEndian.PutUint32(header[8:], unix.RTM_F_FIB_MATCH)
	attrs := []attr{{unix.RTA_DST, dst.AsSlice()}}
	if src.IsValid() {
		header[2] = byte(src.BitLen())
		attrs = append(attrs, attr{unix.RTA_SRC, src.AsSlice()})
	}
	if index != 0 {
		attrs = append(attrs, attr{unix.RTA_OIF, u32(uint32(index))})
	}
	if mark != 0 {
		attrs = append(attrs, attr{unix.RTA_MARK, u32(mark)})
	}
	msgs, err := r.ask(unix.RTM_GETROUTE, 0, header, attrs...)
	switch {
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return 0, nil // none, or one that is unreachable, prohibit or blackhole
	case err != nil:
		return 0, fmt.Errorf("nicdial: asking for the route to %v: %w", dst, err)
	case len(msgs) != 1 || len(msgs[0].Data) < unix.SizeofRtMsg:
		return 0, fmt.Errorf("nicdial: asking for the route to %v: the kernel's answer is none", dst)
	}
	return msgs[0].Data[7], nil
}

// The rules by which eipnet has a NIC's mark routed by that NIC's table:
//
//	5110: from all fwmark 0x2000000/0xff000000 lookup 8102 proto 201
const (
	eipnetProtocol = 201
	eipnetPriority = 5110
)

// marks lists eipnet's marks.
func (r *route) marks(dst netip.Addr) ([]uint32, error) {
	header := make([]byte, unix.SizeofRtMsg) // struct fib_rule_hdr has that size
	header[0] = family(dst)
	msgs, err := r.ask(unix.RTM_GETRULE, unix.NLM_F_DUMP, header)
	if err != nil {
		return nil, fmt.Errorf("nicdial: listing rules: %w", err)
	}
	var out []uint32
	for _, m := range msgs {
		a := attrsOf(m, unix.SizeofRtMsg)
		protocol, priority, mark := a[unix.FRA_PROTOCOL], a[unix.FRA_PRIORITY], a[unix.FRA_FWMARK]
		if len(protocol) == 1 && protocol[0] == eipnetProtocol && len(mark) == 4 &&
			len(priority) == 4 && binary.NativeEndian.Uint32(priority) == eipnetPriority {
			out = append(out, binary.NativeEndian.Uint32(mark))
		}
	}
	return out, nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
