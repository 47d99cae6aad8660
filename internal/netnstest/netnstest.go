// Package netnstest runs tests in network namespaces of their own. A thread
// that was in one is never given back to the Go scheduler: it ends with the
// function, so no other goroutine can find itself in the wrong namespace.
package netnstest

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const threadNetNS = "/proc/thread-self/ns/net"

// Run calls fn on an OS thread of its own in a fresh network namespace whose
// loopback is up. Goroutines that fn starts are not in the namespace. Failing
// and skipping the test inside fn works as usual. In short runs and without
// root the test is skipped; without root it fails where CI is set.
func Run(t testing.TB, fn func()) {
	t.Helper()
	New(t).Do(fn)
}

// NS is a network namespace that lives until the end of its test.
type NS struct {
	t    testing.TB
	file *os.File
}

// New makes a network namespace with its loopback up.
func New(t testing.TB) NS {
	t.Helper()
	needRoot(t)
	n := NS{t: t}
	onThread(t, func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Fatalf("unsharing the network namespace: %v", err)
		}
		f, err := os.Open(threadNetNS)
		if err != nil {
			t.Fatalf("opening the network namespace: %v", err)
		}
		n.file = f
		loopbackUp(t)
	})
	t.Cleanup(func() { n.file.Close() })
	return n
}

// Do calls fn on an OS thread of its own in the namespace and waits for it.
func (n NS) Do(fn func()) {
	n.t.Helper()
	onThread(n.t, func() {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			n.t.Fatalf("entering the network namespace: %v", err)
		}
		fn()
	})
}

// FD returns a descriptor of the namespace, as netlink.NsFd takes it.
func (n NS) FD() int { return int(n.file.Fd()) }

// onThread calls fn on a locked OS thread that ends with it.
func onThread(t testing.TB, fn func()) {
	t.Helper()
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		fn()
		returned = true
	}()
	<-done
	switch {
	case returned:
	case t.Skipped():
		t.SkipNow()
	default:
		t.FailNow()
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("network namespaces are not for short runs")
	}
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("network namespaces need root, and CI is set")
	}
	t.Skip("network namespaces need root")
}

func loopbackUp(t testing.TB) {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatalf("opening netlink: %v", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatalf("finding lo: %v", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		t.Fatalf("setting lo up: %v", err)
	}
}
