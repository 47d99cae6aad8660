package driver

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSendAfterRefusal: a refusal that nobody has read yet is not the next datagram's.
func TestSendAfterRefusal(t *testing.T) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := server.LocalAddr().(*net.UDPAddr)
	server.Close()
	conn, err := net.DialUDP("udp", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("refused")); err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		waiting := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(waiting, 5000)
		for errors.Is(err, unix.EINTR) { // the runtime's own signals
			_, err = unix.Poll(waiting, 5000)
		}
		if err != nil || waiting[0].Revents&unix.POLLERR == 0 {
			t.Errorf("no refusal has come: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if server, err = net.ListenUDP("udp", at); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	send(conn, []byte("heard"))
	if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := server.Read(buf); err != nil || string(buf[:n]) != "heard" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}
