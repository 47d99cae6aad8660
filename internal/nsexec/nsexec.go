// Package nsexec runs an unchanged program in network, mount and process
// namespaces of its own. Three processes take part:
//
//	keeper   the caller of Run: sets the network up, passes signals on, waits
//	init     this binary again, in the new namespaces: mounts, starts the program, reaps
//	program
//
// Each dies with the one above it: init when the keeper does (parent-death
// signal), and everything in the process namespace when init does. With the last
// process the network namespace goes, and its link with it.
package nsexec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// Exit codes for what is not the program's own, as env(1) and docker have them.
const (
	ExitFailed    = 125 // the program was not started
	ExitCannotRun = 126
	ExitNotFound  = 127
	exitSignal    = 128 // and the number of the signal that ended the program
)

// InitCommand is the argument that makes this binary init: its main then calls [Init].
const InitCommand = "exec-init"

// Spec is what is to be run.
type Spec struct {
	Args       []string `json:"args"`
	ResolvConf string   `json:"resolv_conf,omitempty"` // the program's; empty: the host's file
	User       *User    `json:"user,omitempty"`        // nil: as the caller
}

// Linkname is the name of the program's only device beside its loopback.
const linkName = "eth0"

// passedOn are the signals that the keeper passes on. Those that stop a job act
// on all three processes by themselves.
var passedOn = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

// Run runs the program on the attachment's link and returns its exit code. It
// inherits standard streams, environment, working directory and terminal. What
// is in signals already ends it, as does what comes before there is a program to
// pass it on to; the channel has to have room for some.
func Run(spec Spec, a model.Attachment, signals chan os.Signal) (int, error) {
	orders, ordersW, err := os.Pipe()
	if err != nil {
		return ExitFailed, fmt.Errorf("making a pipe: %w", err)
	}
	defer ordersW.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"eipnet", InitCommand},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{orders},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
			Pdeathsig:  unix.SIGKILL,
		},
	}
	for _, s := range passedOn {
		if !signal.Ignored(s) { // as under nohup: the program ignores it, too
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)

	if code, ends := early(signals); ends {
		orders.Close()
		return code, nil
	}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the parent-death signal is bound to the thread that forked
		err := cmd.Start()
		started <- err
		orders.Close()
		if err == nil {
			_ = cmd.Wait() // its exit code says it
		}
	}()
	if err := <-started; err != nil {
		return ExitFailed, fmt.Errorf("making namespaces: %w", err)
	}
	err = setUp(cmd.Process.Pid, a)
	code, ends := early(signals)
	if err == nil && !ends {
		err = json.NewEncoder(ordersW).Encode(spec)
	}
	switch {
	case err != nil:
		code = ExitFailed
		fallthrough
	case ends:
		ordersW.Close() // init ends without orders
		<-ended
		return code, err
	}
	for {
		select {
		case <-ended:
			return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
		case s := <-signals:
			if n := s.(syscall.Signal); !fromTerminal(n) {
				_, _ = ordersW.Write([]byte{byte(n)}) // an error says that init has ended
			}
		}
	}
}

// early reports whether a signal has come that ends whoever does not handle it,
// and the exit code for that.
func early(signals <-chan os.Signal) (code int, ends bool) {
	for {
		select {
		case s := <-signals:
			if s != syscall.SIGWINCH {
				return exitSignal + int(s.(syscall.Signal)), true
			}
		default:
			return 0, false
		}
	}
}

// fromTerminal reports whether the kernel has sent the signal to the program as
// well: to all of the terminal's foreground group, which is ours.
func fromTerminal(s syscall.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT && s != syscall.SIGWINCH {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return exitSignal + int(s.Signal())
	}
	return s.ExitStatus()
}

// setUp moves the link into the namespaces of init and configures it.
func setUp(pid int, a model.Attachment) error {
	ns, err := netns.GetFromPath(filepath.Join("/proc", strconv.Itoa(pid), "ns/net"))
	if err != nil {
		return fmt.Errorf("opening the program's network namespace: %w", err)
	}
	defer ns.Close()
	link, err := netlink.LinkByName(a.Link)
	if err == nil {
		err = netlink.LinkSetNsFd(link, int(ns))
	}
	if err != nil {
		return fmt.Errorf("moving %s into the program's namespace: %w", a.Link, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("opening netlink in the program's namespace: %w", err)
	}
	defer h.Close()
	if err := configure(h, a); err != nil {
		return fmt.Errorf("setting up the program's network: %w", err)
	}
	return nil
}

func configure(h *netlink.Handle, a model.Attachment) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := h.LinkByName(a.Link)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(a.Addr.String())
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return h.LinkSetUp(lo) },
		func() error { return h.LinkSetName(link, linkName) },
		func() error { return h.AddrAdd(link, addr) },
		func() error { return h.LinkSetUp(link) },
		func() error {
			return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: a.Gateway.AsSlice()})
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// ResolvConf is the resolv.conf of a program, made from the host's: name
// servers on the host's loopback and its own addresses, which would ask by the
// host's own routing, are left out. Servers that are given replace all others.
// local reports that none is left.
func ResolvConf(host string, servers []string, own []netip.Addr) (text string, local bool) {
	var out []string
	kept := len(servers)
	for _, s := range servers {
		out = append(out, "nameserver "+s)
	}
	for line := range strings.Lines(host) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[0] == "nameserver" {
			a, err := netip.ParseAddr(fields[1])
			a = a.Unmap().WithZone("")
			if len(servers) > 0 || err == nil && (a.IsLoopback() || a.IsUnspecified() || slices.Contains(own, a)) {
				continue
			}
			kept++
		}
		out = append(out, strings.TrimRight(line, "\n"))
	}
	return strings.Join(out, "\n") + "\n", kept == 0
}

// OwnAddrs lists the host's addresses.
func OwnAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing this host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}

// HostResolvConf reads the host's resolv.conf; where its name servers are on
// the host, as systemd-resolved's is, the one with the servers that that asks.
func HostResolvConf(own []netip.Addr) (string, error) {
	text, err := os.ReadFile("/etc/resolv.conf")
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the name servers: %w", err)
	}
	if _, local := ResolvConf(string(text), nil, own); !local {
		return string(text), nil
	}
	if real, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
		return string(real), nil
	}
	return string(text), nil
}
