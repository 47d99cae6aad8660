package e2e

import (
	be "encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// inContainer runs fn in a container's network namespace: what a program with
// NET_RAW can do there.
func (r *rig) inContainer(name string, fn func() error) error {
	r.t.Helper()
	pid := r.docker("inspect", "-f", "{{.State.Pid}}", name)
	if err := inNetNS(r.Host.Path("/proc/"+pid+"/ns/net"), fn); err != nil {
		return fmt.Errorf("in the namespace of %s: %w", name, err)
	}
	return nil
}

// inNetNS runs fn in a network namespace, on a thread that dies with it.
func inNetNS(path string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		f, err := os.Open(path)
		if err != nil {
			done <- err
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering it: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// send emits whole IPv4 packets from a container, by its routing.
func (r *rig) send(name string, packets ...[]byte) {
	r.t.Helper()
	err := r.inContainer(name, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatalf("sending from %s: %v", name, err)
	}
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	if len(b)%2 == 1 {
		b = append(append([]byte(nil), b...), 0)
	}
	for i := 0; i < len(b); i += 2 {
		sum += uint32(be.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func ip4(src, dst netip.Addr, proto byte, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	be.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	be.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func udp(from, to uint16, data string) []byte {
	b := make([]byte, 8)
	be.BigEndian.PutUint16(b, from)
	be.BigEndian.PutUint16(b[2:], to)
	be.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
	return append(b, data...)
}

// tcp is a segment without data or a valid checksum: enough to be quoted, and
// with flags that belong to no connection.
func tcp(from, to uint16, flags byte) []byte {
	b := make([]byte, 20)
	be.BigEndian.PutUint16(b, from)
	be.BigEndian.PutUint16(b[2:], to)
	b[12], b[13] = 5<<4, flags
	return b
}

// unreachable is an ICMP error that quotes a packet.
func unreachable(quoted []byte) []byte {
	b := append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, quoted...)
	be.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// send6 is send for IPv6.
func (r *rig) send6(name string, packets ...[]byte) {
	r.t.Helper()
	err := r.inContainer(name, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet6{Addr: [16]byte(p[24:40])}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatalf("sending from %s: %v", name, err)
	}
}

func ip6(src, dst netip.Addr, proto byte, payload []byte) []byte {
	h := make([]byte, 8)
	h[0], h[6], h[7] = 0x60, proto, 64
	be.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	return slices.Concat(h, src.AsSlice(), dst.AsSlice(), payload)
}

// udp6 is udp with the checksum that IPv6 wants.
func udp6(src, dst netip.Addr, from, to uint16, data string) []byte {
	b := udp(from, to, data)
	be.BigEndian.PutUint16(b[6:], checksum(slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, 0, 0, byte(len(b)), 0, 0, 0, 17}, b)))
	return b
}
