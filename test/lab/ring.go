package lab

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	snapLen   = 192 // enough for headers and a plant's mark
	slotLen   = 512 // a frame in the ring, with its header
	ringBlock = 1 << 16
	ringLen   = 32 << 20
)

// ring is a packet socket's ring (packet_mmap(7)): a frame is copied when it
// arrives. In the socket's queue it would share its memory with the frame that
// goes on, and the router's address translation writes there: a fragment that was
// read late bore the public address.
type ring struct {
	file *os.File
	mem  []byte // slots, shared with the kernel
	at   int    // of the next slot
}

// openRing opens a packet socket on a link of the thread's namespace, which sees
// all that the link receives and nothing that it sends.
func openRing(link string) (*ring, error) {
	fd, index, err := packetSocket(link, false)
	if err != nil {
		return nil, err
	}
	r := &ring{file: os.NewFile(uintptr(fd), "packet:"+link)}
	cut := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: snapLen} // "return the first snapLen bytes"
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &cut}),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2),
		unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq{
			Block_size: ringBlock, Block_nr: ringLen / ringBlock, Frame_size: slotLen, Frame_nr: ringLen / slotLen,
		}),
	)
	if err == nil {
		r.mem, err = unix.Mmap(fd, 0, ringLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("setting up a packet socket on %s: %w", link, err), r.file.Close(), r.free())
	}
	return r, nil
}

// next waits for a frame and hands it over; it is the kernel's again afterwards.
// It ends with an error when the socket is closed.
func (r *ring) next(take func(frame []byte)) error {
	raw, err := r.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("reading frames: %w", err)
	}
	slot := r.mem[r.at:][:slotLen]
	header := (*unix.Tpacket2Hdr)(unsafe.Pointer(&slot[0]))
	err = raw.Read(func(uintptr) bool { return atomic.LoadUint32(&header.Status)&unix.TP_STATUS_USER != 0 })
	if err != nil {
		return fmt.Errorf("reading frames: %w", err)
	}
	take(slot[header.Mac:][:header.Snaplen])
	atomic.StoreUint32(&header.Status, unix.TP_STATUS_KERNEL)
	r.at = (r.at + slotLen) % ringLen
	return nil
}

// free unmaps the ring, which nobody reads any more.
func (r *ring) free() error {
	if r.mem == nil {
		return nil
	}
	return unix.Munmap(r.mem)
}
