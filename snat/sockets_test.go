package snat

import (
	"net"
	"testing"
)

// sendUDP sends one datagram from the calling thread's namespace; whether it arrives is another matter.
func sendUDP(tb testing.TB, to string) {
	tb.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		tb.Error(err)
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
}
