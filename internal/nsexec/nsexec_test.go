package nsexec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResolvConf(t *testing.T) {
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
		"no server": {"", nil, "\n", true},
	} {
		got, local := ResolvConf(tt.host, tt.servers)
		if diff := cmp.Diff(tt.want, got); diff != "" || local != tt.local {
			t.Errorf("%s: local %v (-want +got)\n%s", name, local, diff)
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
