package host

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
)

// open makes a Host in the namespace of the calling thread.
func open(t testing.TB, o Options) (*Host, *MemoryOriginals) {
	t.Helper()
	m := &MemoryOriginals{}
	o.Log = slog.New(slog.DiscardHandler)
	if o.Originals == nil {
		o.Originals = m
	}
	if o.Root == "" {
		o.Root = t.TempDir()
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h, m
}

// ip runs the ip tool once per line in the namespace of the calling thread; ~ stands for a space in an argument.
func ip(t testing.TB, lines ...string) string {
	t.Helper()
	var all strings.Builder
	for _, args := range lines {
		fields := strings.Fields(args)
		for i, f := range fields {
			fields[i] = strings.ReplaceAll(f, "~", " ")
		}
		out, err := exec.CommandContext(t.Context(), "ip", fields...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// twoNICs makes eth0 (primary, 172.31.0.8) and eth1 (172.31.0.14) in host,
// whose other ends are ports of one bridge in a namespace of its own.
func twoNICs(t testing.TB) (host, far netnstest.NS) {
	t.Helper()
	host, far = netnstest.New(t), netnstest.New(t)
	far.Do(func() {
		ip(t, "link add sw type bridge", "link set sw up")
		for _, n := range []string{"eth0", "eth1"} {
			ip(t, "link add "+n+" type veth peer name "+n+"h", "link set "+n+" master sw", "link set "+n+" up")
			link, err := exec.CommandContext(t.Context(), "ip", "link", "set", n+"h", "netns", netnsPath(host), "name", n).CombinedOutput()
			if err != nil {
				t.Fatalf("moving %s: %v\n%s", n, err, link)
			}
		}
	})
	host.Do(func() {
		ip(t, "link set eth0 up", "link set eth1 up",
			"addr add 172.31.0.8/20 dev eth0", "addr add 172.31.0.14/20 dev eth1")
	})
	return host, far
}

func netnsPath(n netnstest.NS) string {
	return filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(n.FD()))
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ok() {
		if !delay.For(ctx, 5*time.Millisecond) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func observe(t testing.TB, h *Host, managed ...string) model.Host {
	t.Helper()
	got, err := h.Observe(t.Context(), managed)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func sysctlValue(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func setSysctl(t testing.TB, path, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

func addrOf(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}
