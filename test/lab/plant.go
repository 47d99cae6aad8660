package lab

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A planted frame bears plantMark and 16 characters of its own, by which the sniffer knows it.
const (
	plantMark = "eipnet-lab-plant:"
	plantLen  = len(plantMark) + 16
)

const (
	// plantTimeout bounds the way of one frame over one veth pair.
	plantTimeout = 15 * time.Second
	// plantAgain is when a frame is sent again: a link whose carrier has just come back may lose some.
	plantAgain = 250 * time.Millisecond
)

var (
	plantSrc  = netip.MustParseAddr("192.0.2.66")
	plantDst  = netip.MustParseAddr("192.0.2.67")
	plantSrc6 = netip.MustParseAddr("2001:db8:bad::66")
	plantDst6 = netip.MustParseAddr("2001:db8:bad::67")
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Frames with a wrong source (the fabric drops and counts them), and one that only marks a moment: its
// EtherType, kept for experiments, means nothing to anybody.
func plantIP4(n NIC, mark []byte) []byte {
	return frameIP4(n.MAC, broadcast, plantSrc, plantDst, mark)
}

func plantIP6(n NIC, mark []byte) []byte {
	return frameIP6(n.MAC, broadcast, plantSrc6, plantDst6, mark)
}

func plantARP(n NIC, mark []byte) []byte {
	return append(frameARP(n.MAC, plantSrc, plantDst), mark...)
}

func settleFrame(n NIC, mark []byte) []byte {
	return append(ether(n.MAC, broadcast, 0x88b5), mark...)
}

// plant puts a frame on the host's side of the NIC and waits until the sniffer has seen it. It runs on a
// thread that is in the host's namespace.
func (s *Sniffer) plant(ctx context.Context, frame func(NIC, []byte) []byte) error {
	ctx, cancel := context.WithTimeout(ctx, plantTimeout)
	defer cancel()
	mark := plantMark + rand.Text()[:16]
	seen := make(chan struct{})
	s.mu.Lock()
	s.planted[mark] = seen
	s.mu.Unlock()
	for {
		if err := sendFrame(s.nic.Name, frame(s.nic, []byte(mark))); err != nil {
			return err
		}
		select {
		case <-seen:
			return nil
		case <-time.After(plantAgain):
		case <-ctx.Done():
			return fmt.Errorf("the sniffer of %s did not see the frame planted there: %w", s.nic.Name, ctx.Err())
		}
	}
}

// Prove shows that the sniffer works: it sees frames with a wrong IPv4, IPv6 and ARP source that are
// planted on the host's side. They are not reported, but the fabric counts them as dropped.
func (s *Sniffer) Prove(ctx context.Context) error {
	err := s.lab.Host.ns.Do(func() error {
		for _, frame := range []func(NIC, []byte) []byte{plantIP4, plantIP6, plantARP} {
			if err := s.plant(ctx, frame); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(s.settle(ctx), s.Err())
}

// settle waits until all that the host has sent so far on this NIC was read, and was counted by the
// fabric. A cable delivers in order what one CPU sends, so one frame that is seen from each CPU has
// everything older before it.
func (s *Sniffer) settle(ctx context.Context) error {
	return s.lab.Host.ns.Do(func() (err error) {
		var all, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &all); err != nil {
			return fmt.Errorf("asking for the CPUs: %w", err)
		}
		defer func() { err = errors.Join(err, unix.SchedSetaffinity(0, &all)) }()
		for cpu, left := 0, all.Count(); left > 0; cpu++ {
			if !all.IsSet(cpu) {
				continue
			}
			left--
			one.Zero()
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return fmt.Errorf("moving to CPU %d: %w", cpu, err)
			}
			err := s.plant(ctx, settleFrame)
			if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENODEV) {
				return nil // the NIC is down, has no carrier, or is unplugged: nothing is on its way
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// SendFrame sends a raw Ethernet frame from the host's side of a NIC, past routing and firewall's IP
// hooks. The sniffers report it as any other packet.
func (l *Lab) SendFrame(nic string, frame []byte) error {
	return l.Host.ns.Do(func() error { return sendFrame(nic, frame) })
}

// sendFrame sends from the thread's own network namespace and CPU.
func sendFrame(nic string, frame []byte) (err error) {
	file, err := openSender(nic)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Write(frame); err != nil {
		return fmt.Errorf("sending a frame on %s: %w", nic, err)
	}
	return nil
}

func ether(src, dst net.HardwareAddr, kind uint16) []byte {
	return binary.BigEndian.AppendUint16(append(append([]byte(nil), dst...), src...), kind)
}

// udpTo9 is a UDP header (discard port, no checksum) with its payload.
func udpTo9(payload []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 9, 0, 9}, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

func frameIP4(srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, payload []byte) []byte {
	udp := udpTo9(payload)
	head := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, ProtoUDP, 0, 0}
	binary.BigEndian.PutUint16(head[2:], uint16(20+len(udp)))
	head = append(append(head, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(head[10:], checksum(head))
	return append(append(ether(srcMAC, dstMAC, 0x0800), head...), udp...)
}

func frameIP6(srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, payload []byte) []byte {
	udp := udpTo9(payload)
	head := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(udp)))
	head = append(head, ProtoUDP, 64)
	head = append(append(head, src.AsSlice()...), dst.AsSlice()...)
	return append(append(ether(srcMAC, dstMAC, 0x86dd), head...), udp...)
}

func frameARP(srcMAC net.HardwareAddr, src, target netip.Addr) []byte {
	b := append(ether(srcMAC, broadcast, 0x0806), 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, srcMAC...), src.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
}
