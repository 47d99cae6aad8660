package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sniffer sees every frame that the host sends on one NIC, before the fabric's source check: its socket
// is on the fabric's end of the NIC's cable, and packet sockets are served ahead of the ingress hook.
type Sniffer struct {
	lab  *Lab
	nic  NIC
	ring *ring

	mu      sync.Mutex
	flows   map[Packet]*Flow
	folded  int // packets whose flow was folded because there were too many
	planted map[string]chan struct{}
	lost    uint32
	ended   error // why nothing is read any more
	done    chan struct{}
}

// maxFlows bounds memory: beyond it the ports of a flow are forgotten, so that its packets still count.
const maxFlows = 500_000

// newSniffer opens the socket and starts reading.
func newSniffer(l *Lab, nic NIC) (*Sniffer, error) {
	s := &Sniffer{lab: l, nic: nic, flows: map[Packet]*Flow{}, planted: map[string]chan struct{}{}, done: make(chan struct{})}
	err := l.fabric.Do(func() (err error) {
		s.ring, err = openRing(portOf(nic.Name))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening the sniffer of %s: %w", nic.Name, err)
	}
	go s.read()
	return s, nil
}

// packetSocket opens a packet socket that is not bound yet, and finds the link,
// of the thread's namespace. One that is to send wants the link up.
func packetSocket(link string, sends bool) (fd, index int, err error) {
	iface, err := netlink.LinkByName(link)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return 0, 0, fmt.Errorf("finding %s: %w", link, unix.ENODEV)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("finding %s: %w", link, err)
	}
	if sends && iface.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		return 0, 0, fmt.Errorf("sending on %s: %w", link, unix.ENETDOWN)
	}
	// Protocol 0 until it is bound: nothing of another link is queued meanwhile.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("opening a packet socket: %w", err)
	}
	return fd, iface.Attrs().Index, nil
}

// openSender opens a packet socket that sends on a link of the thread's namespace.
func openSender(link string) (*os.File, error) {
	fd, index, err := packetSocket(link, true)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "packet:"+link)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return nil, errors.Join(fmt.Errorf("binding to %s: %w", link, err), file.Close())
	}
	return file, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (s *Sniffer) read() {
	defer close(s.done)
	for {
		if err := s.ring.next(func(frame []byte) { s.take(frame, time.Now()) }); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ended = err
			return
		}
	}
}

func (s *Sniffer) take(frame []byte, at time.Time) {
	p := parse(s.nic.Name, frame)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := bytes.Index(frame, []byte(plantMark)); i >= 0 && len(frame) >= i+plantLen {
		if ch, ok := s.planted[string(frame[i:i+plantLen])]; ok {
			close(ch)
			delete(s.planted, string(frame[i:i+plantLen]))
		}
		return
	}
	f, ok := s.flows[p]
	if !ok && len(s.flows) >= maxFlows {
		s.folded++
		p.SPort, p.DPort = 0, 0
		f, ok = s.flows[p]
	}
	if !ok {
		f = &Flow{Packet: p, First: at}
		s.flows[p] = f
	}
	f.Count++
	f.Last = at
}

// Flows lists all that the host sent on this NIC since the start or the last Reset, oldest first.
func (s *Sniffer) Flows() []Flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Flow, 0, len(s.flows))
	for _, f := range s.flows {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b Flow) int { return a.First.Compare(b.First) })
	return out
}

// Foreign lists what the host sent on this NIC with an address that is not this NIC's: IPv4, IPv6, ARP
// sender, or MAC. Link-local IPv6, the unspecified IPv6 address and ARP probes belong to every NIC.
func (s *Sniffer) Foreign() []Flow {
	return slices.DeleteFunc(s.Flows(), func(f Flow) bool { return s.own(f.Packet) })
}

func (s *Sniffer) own(p Packet) bool {
	if p.SrcMAC != s.nic.MAC.String() {
		return false
	}
	switch p.Kind {
	case IPv4:
		return slices.Contains(s.nic.addrs(false), p.Src)
	case IPv6:
		return p.Src.IsLinkLocalUnicast() || p.Src.IsUnspecified() || slices.Contains(s.nic.addrs(true), p.Src)
	case ARP:
		return p.Src == netip.IPv4Unspecified() || slices.Contains(s.nic.addrs(false), p.Src)
	}
	return true
}

// Seen counts the packets that match says yes to.
func (s *Sniffer) Seen(match func(Packet) bool) int {
	n := 0
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, f := range s.flows {
		if match(p) {
			n += f.Count
		}
	}
	return n
}

// To makes a match for Seen: packets of one IP protocol to one address.
func To(proto uint8, dst netip.Addr) func(Packet) bool {
	return func(p Packet) bool {
		return (p.Kind == IPv4 || p.Kind == IPv6) && p.Proto == proto && p.Dst == dst
	}
}

// Counts is how many packets went out by protocol number and destination.
func (s *Sniffer) Counts() map[ProtoDst]int {
	out := map[ProtoDst]int{}
	for _, f := range s.Flows() {
		if f.Kind == IPv4 || f.Kind == IPv6 {
			out[ProtoDst{f.Proto, f.Dst}] += f.Count
		}
	}
	return out
}

// ProtoDst is the key of Counts.
type ProtoDst struct {
	Proto uint8
	Dst   netip.Addr
}

// Reset forgets what was seen; that packets were lost is not forgotten.
func (s *Sniffer) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.flows)
	s.folded = 0
}

// Err says whether the sniffer missed anything since the lab started: frames that the kernel dropped
// because they were not read in time.
func (s *Sniffer) Err() error {
	raw, err := s.ring.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("asking the sniffer of %s: %w", s.nic.Name, err)
	}
	var stats *unix.TpacketStats
	var serr error
	err = raw.Control(func(fd uintptr) {
		stats, serr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(err, serr); err != nil {
		return fmt.Errorf("asking the sniffer of %s for its losses: %w", s.nic.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += stats.Drops // reading resets the kernel's counter
	if s.ended != nil {
		return fmt.Errorf("the sniffer of %s has ended: %w", s.nic.Name, s.ended)
	}
	if s.lost > 0 {
		return fmt.Errorf("the sniffer of %s lost %d packets: what it did not see proves nothing", s.nic.Name, s.lost)
	}
	return nil
}

func (s *Sniffer) close() error {
	err := s.ring.file.Close()
	<-s.done
	return errors.Join(err, s.ring.free())
}
