package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netNS is an anonymous network namespace that lives as long as the descriptor does (or a process in it).
type netNS struct {
	name string

	mu     sync.RWMutex // a descriptor must not be closed, and its number used again, while it is entered
	file   *os.File
	closed bool
}

// newNetNS makes an empty network namespace with its loopback up.
func newNetNS(name string) (*netNS, error) {
	var file *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unsharing the network namespace: %w", err)
		}
		f, err := os.Open(threadNetNS)
		file = f
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making namespace %s: %w", name, err)
	}
	n := &netNS{name: name, file: file}
	if err := n.loopbackUp(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// netNSOf opens the network namespace of a process.
func netNSOf(name string, pid int) (*netNS, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("opening namespace %s: %w", name, err)
	}
	n := &netNS{name: name, file: f}
	if err := n.loopbackUp(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// fd is the descriptor's number, for use while the lab is open.
func (n *netNS) fd() int { return int(n.file.Fd()) }

// Close lets go of the namespace.
func (n *netNS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	return n.file.Close()
}

func (n *netNS) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return fmt.Errorf("entering namespace %s: %w", n.name, os.ErrClosed)
	}
	if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering namespace %s: %w", n.name, err)
	}
	return nil
}

// Do runs fn on an OS thread that is in the namespace. Sockets that fn opens and processes that it
// starts belong to the namespace for good; goroutines that it starts do not.
func (n *netNS) Do(fn func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return fn()
	})
}

const threadNetNS = "/proc/thread-self/ns/net"

// onThread runs fn on a locked OS thread and puts the thread back into the network namespace that it
// came from; a thread that cannot be put back is never used again.
func onThread(fn func() error) error {
	err := errors.New("the function did not return")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, herr := os.Open(threadNetNS)
		if herr != nil {
			err = fmt.Errorf("remembering the network namespace: %w", herr)
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			home.Close()
		}()
		err = fn()
	}()
	<-done
	return err
}

// links runs fn with a netlink handle into the namespace.
func (n *netNS) links(fn func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(n.fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink in %s: %w", n.name, err)
	}
	defer h.Close()
	return fn(h)
}

func (n *netNS) loopbackUp() error {
	return n.links(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding lo in %s: %w", n.name, err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("setting lo up in %s: %w", n.name, err)
		}
		return nil
	})
}

// sysctl writes per-namespace settings; pairs is key, value, key, value…, keys with dots as sysctl(8)
// has them, where an interface name may not contain one.
func (n *netNS) sysctl(pairs ...string) error {
	return n.Do(func() error {
		for i := 0; i+1 < len(pairs); i += 2 {
			path := filepath.Join("/proc/sys", strings.ReplaceAll(pairs[i], ".", "/"))
			if err := os.WriteFile(path, []byte(pairs[i+1]), 0o644); err != nil {
				return fmt.Errorf("setting %s=%s in %s: %w", pairs[i], pairs[i+1], n.name, err)
			}
		}
		return nil
	})
}
