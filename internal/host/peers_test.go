package host

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/netnstest"
)

// peers is what the bridges' ports lead to, without an error.
func peers(t testing.TB, h *Host, bridges ...string) map[string]string {
	t.Helper()
	got, err := h.Peers(t.Context(), bridges)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func wantPeers(t testing.TB, h *Host, want map[string]string, bridges ...string) {
	t.Helper()
	if diff := cmp.Diff(want, peers(t, h, bridges...)); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
}

// container is a process in namespaces of its own.
func container(t testing.TB, clone uintptr) int {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: clone | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if clone&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: 100000, Size: 1000}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: 100000, Size: 1000}}
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no namespaces %#x: %v", clone, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// inside runs a command line in the network namespace of a process.
func inside(t testing.TB, pid int, line string) {
	t.Helper()
	execOutput(t, fmt.Sprintf("nsenter -n -t %d %s", pid, line))
}

func TestPeers(t *testing.T) {
	kinds := map[string]uintptr{
		"network namespace":              0,
		"with a PID and mount namespace": unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		"with a user namespace":          unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
	}
	moves := map[string]func(t *testing.T, link netlink.Link, pid int) error{
		"moved by process id": func(_ *testing.T, link netlink.Link, pid int) error { return netlink.LinkSetNsPid(link, pid) },
		"moved by descriptor": func(t *testing.T, link netlink.Link, pid int) error {
			t.Helper()
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			return netlink.LinkSetNsFd(link, int(f.Fd()))
		},
	}
	for kind, clone := range kinds {
		for move, do := range moves {
			t.Run(kind+", "+move, func(t *testing.T) {
				netnstest.Run(t, func() {
					pid := container(t, clone)
					ip(t, "link add br0 type bridge", "link add veth1 type veth peer name c1", "link set veth1 master br0 up")
					h, _ := open(t, Options{})
					random := link(t, h, "c1").Attrs().HardwareAddr.String()
					wantPeers(t, h, map[string]string{"veth1": random}, "br0") // not moved yet
					c1, err := netlink.LinkByName("c1")
					if err != nil {
						t.Fatal(err)
					}
					if err := do(t, c1, pid); err != nil {
						t.Fatal(err)
					}
					wantPeers(t, h, map[string]string{"veth1": random}, "br0")
					// As an engine does: rename, address, up. Only then the container's process starts.
					inside(t, pid, "ip link set c1 name eth0 address 02:42:ac:11:00:02")
					wantPeers(t, h, map[string]string{"veth1": "02:42:ac:11:00:02"}, "br0")
					inside(t, pid, "ip link set eth0 up")
					wantPeers(t, h, map[string]string{"veth1": "02:42:ac:11:00:02"}, "br0")
					inside(t, pid, "ip link set eth0 down address 02:42:ac:11:00:99 up")
					wantPeers(t, h, map[string]string{"veth1": "02:42:ac:11:00:02"}, "br0")
					wantPeers(t, h, map[string]string{}, "br1")
				})
			})
		}
	}
}

// TestPeersMadeInPlace has the far end made in the container's namespace at once.
func TestPeersMadeInPlace(t *testing.T) {
	netnstest.Run(t, func() {
		pid := container(t, unix.CLONE_NEWPID)
		h, _ := open(t, Options{})
		ip(t, "link add br0 type bridge",
			fmt.Sprintf("link add veth1 type veth peer name eth0 address 02:42:ac:11:00:02 netns %d", pid), "link set veth1 master br0 up")
		wantPeers(t, h, map[string]string{"veth1": "02:42:ac:11:00:02"}, "br0")
	})
}

// TestPeersOfMovedAgain: a container moves its interface into a namespace that
// it made, to be seen for the first time once more.
func TestPeersOfMovedAgain(t *testing.T) {
	netnstest.Run(t, func() {
		one, two := container(t, 0), container(t, 0)
		h, _ := open(t, Options{})
		ip(t, "link add br0 type bridge", "link add veth1 type veth peer name c1 address 02:42:ac:11:00:02", "link set veth1 master br0 up",
			fmt.Sprintf("link set c1 netns %d", one))
		inside(t, one, "ip link set c1 up")
		want := map[string]string{"veth1": "02:42:ac:11:00:02"}
		wantPeers(t, h, want, "br0")
		inside(t, one, fmt.Sprintf("ip link set c1 netns %d", two))
		inside(t, two, "ip link set c1 address 02:42:ac:11:00:99 up")
		wantPeers(t, h, want, "br0")
		inside(t, two, fmt.Sprintf("ip link set c1 netns %d", unix.Gettid())) // by the engine
		wantPeers(t, h, map[string]string{"veth1": "02:42:ac:11:00:99"}, "br0")
	})
}

func TestPeersWithOneMAC(t *testing.T) {
	netnstest.Run(t, func() {
		var log bytes.Buffer
		h, _ := open(t, Options{})
		h.log = slog.New(slog.NewTextHandler(&log, nil))
		add := func(port, bridge, mac string) int {
			pid := container(t, 0)
			ip(t, "link add "+port+" type veth peer name c address "+mac, "link set "+port+" master "+bridge+" up", fmt.Sprintf("link set c netns %d", pid))
			inside(t, pid, "ip link set c up")
			return pid
		}
		ip(t, "link add br0 type bridge", "link add br1 type bridge", "link add br2 type bridge",
			"link add other type veth peer name far", "link set other master br2")
		const mac, other = "02:42:ac:11:00:02", "02:42:ac:11:00:03"
		add("veth9", "br0", mac)
		wantPeers(t, h, map[string]string{"veth9": mac}, "br0", "br1")
		add("veth1", "br0", mac)
		add("veth2", "br0", other)
		add("veth3", "br1", mac)
		for range 3 {
			wantPeers(t, h, map[string]string{"veth9": mac, "veth2": other, "veth3": mac}, "br0", "br1")
		}
		if n := strings.Count(log.String(), "left_out=veth1"); n != 1 {
			t.Errorf("said %d times:\n%s", n, &log)
		}
		ip(t, "link del veth9")
		wantPeers(t, h, map[string]string{"veth1": mac, "veth2": other, "veth3": mac}, "br0", "br1")
		if n := len(h.peers.peers); n != 3 {
			t.Errorf("%d ports remembered", n)
		}
	})
}

// TestManyPeers measures.
func TestManyPeers(t *testing.T) {
	netnstest.Run(t, func() {
		pid := container(t, 0)
		const n = 200
		var make, up strings.Builder
		for i := range n {
			fmt.Fprintf(&make, "link add veth%d type veth peer name c%d\nlink set veth%d master br0 up\nlink set c%d netns %d\n", i, i, i, i, pid)
			fmt.Fprintf(&up, "link set c%d up\n", i)
		}
		batch := func(stdin string, command ...string) {
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Stdin = strings.NewReader(stdin)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		h, _ := open(t, Options{})
		timed := func(what string) {
			start := time.Now()
			if got := peers(t, h, "br0"); len(got) != n {
				t.Errorf("%d peers, want %d", len(got), n)
			}
			t.Logf("%d ports, %s: %v", n, what, time.Since(start).Round(10*time.Microsecond))
		}
		ip(t, "link add br0 type bridge")
		batch(make.String(), "ip", "-batch", "-")
		timed("first sight, down")
		batch(up.String(), "nsenter", "-n", "-t", strconv.Itoa(pid), "ip", "-batch", "-")
		timed("first sight, up")
		timed("known")
		start := time.Now()
		if _, err := h.handle.LinkList(); err != nil {
			t.Fatal(err)
		}
		t.Logf("of this, listing links: %v", time.Since(start).Round(10*time.Microsecond))
	})
}
