package driver

import (
	"os"

	"golang.org/x/sys/unix"
)

// Filters that keep no byte of any packet, or all.
var (
	dropAll = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	keepAll = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff}}
)

// loopbackOnly keeps what goes to ::1, by the destination in the IPv6 header.
//
//	ld [net + 24 … 36]; jeq 0, 0, 0, 1; ret all; ret 0
var loopbackOnly = func() []unix.SockFilter {
	const header, word = 0xfff00000, 4 // SKF_NET_OFF
	var prog []unix.SockFilter
	for i, want := range []uint32{0, 0, 0, 1} {
		left := uint8(2 * (3 - i)) // instructions of the other words
		prog = append(prog,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: header + 24 + uint32(i)*word},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: want, Jf: left + 1},
		)
	}
	return append(prog, keepAll[0], dropAll[0])
}()

// attach gives the socket a filter in place of the one it has.
func attach(fd int, filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	return nil
}

// control does something with the file's descriptor.
func control(file *os.File, fn func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if gone := raw.Control(func(fd uintptr) { err = fn(int(fd)) }); gone != nil {
		return gone
	}
	return err
}
