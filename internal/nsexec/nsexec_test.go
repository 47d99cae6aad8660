package nsexec

import (
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

func TestResolvConf(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fe80::1")}
	for name, tt := range map[string]struct {
		host    string
		servers []string
		want    string
		local   bool
	}{
		"kept":      {"nameserver 192.0.2.1\nsearch x\n", nil, "nameserver 192.0.2.1\nsearch x\n", false},
		"a stub":    {"nameserver 127.0.0.53\noptions edns0", nil, "options edns0\n", true},
		"one stub":  {"nameserver ::1\nnameserver 192.0.2.1\n", nil, "nameserver 192.0.2.1\n", false},
		"given":     {"nameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch x\n", []string{"9.9.9.9"}, "nameserver 9.9.9.9\nsearch x\n", false},
		"its own":   {"nameserver 172.17.0.1\nnameserver 169.254.20.10\nnameserver fe80::1%eth0\nnameserver 0.0.0.0\noptions edns0\n", nil, "options edns0\n", true},
		"one own":   {"nameserver 172.17.0.1\nnameserver 172.17.0.2\n", nil, "nameserver 172.17.0.2\n", false},
		"own given": {"nameserver 192.0.2.1\n", []string{"172.17.0.1"}, "nameserver 172.17.0.1\n", false},
		"no server": {"", nil, "\n", true},
	} {
		got, local := ResolvConf(tt.host, tt.servers, own)
		if diff := cmp.Diff(tt.want, got); diff != "" || local != tt.local {
			t.Errorf("%s: local %v (-want +got)\n%s", name, local, diff)
		}
	}
}

func TestOwnAddrs(t *testing.T) {
	own, err := OwnAddrs()
	if err != nil || len(own) > 0 && !slices.ContainsFunc(own, netip.Addr.IsLoopback) {
		t.Errorf("%v, %v", own, err)
	}
}

// A signal that came before the program ends the command.
func TestSignalBefore(t *testing.T) {
	for s, want := range map[os.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130} {
		signals := make(chan os.Signal, 2)
		signals <- syscall.SIGWINCH
		signals <- s
		if code, err := Run(Spec{Args: []string{"false"}}, model.Attachment{}, signals); code != want || err != nil {
			t.Errorf("%v: exit code %d, %v; want %d", s, code, err, want)
		}
	}
}

func TestParseUser(t *testing.T) {
	for s, want := range map[string]User{
		"0:0":     {UID: 0, GID: 0},
		"root:7":  {UID: 0, GID: 7},
		"4321":    {UID: 4321, GID: 4321},
		"4321:55": {UID: 4321, GID: 55},
	} {
		got, err := ParseUser(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		got.Groups = nil // the machine's
		if diff := cmp.Diff(want, *got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", s, diff)
		}
	}
	for _, s := range []string{"", "no-such-user", "0:no-such-group", "-1", "99999999999"} {
		if got, err := ParseUser(s); err == nil {
			t.Errorf("%q: %v, want an error", s, got)
		}
	}
}
