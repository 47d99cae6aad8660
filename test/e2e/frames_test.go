package e2e

import (
	be "encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// sendFrames emits whole Ethernet frames from a container's first interface.
func (r *rig) sendFrames(name string, frames ...[]byte) {
	r.t.Helper()
	err := r.inContainer(name, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatalf("sending frames from %s: %v", name, err)
	}
}

func ether(dst, src net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(be.BigEndian.AppendUint16(append(append([]byte(nil), dst...), src...), kind), payload...)
}

// arpClaim is an unasked answer: the address is at this MAC.
func arpClaim(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	b = append(append(b, mac...), addr.AsSlice()...)
	return append(append(b, mac...), addr.AsSlice()...)
}

// fragment makes an IPv4 packet the last part of a longer one, the rest of which never comes.
func fragment(packet []byte) []byte {
	be.BigEndian.PutUint16(packet[6:], 185)
	be.BigEndian.PutUint16(packet[10:], 0)
	be.BigEndian.PutUint16(packet[10:], checksum(packet[:20]))
	return packet
}
