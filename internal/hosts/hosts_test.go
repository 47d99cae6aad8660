package hosts_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/hosts"
	"github.com/eipnet/eipnet/internal/model"
)

// world is store and loop; a pass writes down what it finds.
type world struct {
	mu      sync.Mutex
	entries map[string]model.HostEntry
	diary   []string
	fail    error // of the next pass
	unseen  bool
}

func (w *world) Networks() []model.Network {
	return []model.Network{{ID: "n", Name: "eip", Bridge: "eip_bridge", Subnet4: netip.MustParsePrefix("172.20.0.0/16")}}
}
func (w *world) Endpoints() []model.Endpoint { return nil }
func (w *world) HostEntries() []model.HostEntry {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []model.HostEntry
	for _, name := range slices.Sorted(maps.Keys(w.entries)) {
		out = append(out, w.entries[name].Clone())
	}
	return out
}

func (w *world) PutHostEntry(e model.HostEntry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries[e.Name] = e.Clone()
	return nil
}

func (w *world) DeleteHostEntry(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.entries, name)
	return nil
}
func (w *world) DeleteRebind(string) error { return nil }

func (w *world) Sync(context.Context, ...string) error {
	var state []string
	for _, e := range w.HostEntries() {
		if e.Leaving {
			e.Name += " leaving"
		}
		state = append(state, e.Name+" "+e.Options[model.KeyNIC])
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.diary = append(w.diary, "pass: "+strings.Join(state, ", "))
	err := w.fail
	w.fail = nil
	return err
}

func (w *world) Host(context.Context) (model.Host, error) {
	nic := model.NIC{Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.14/20")}}
	return model.Host{NICs: []model.NIC{nic}, Links: []string{"eth1"}, Locals: []netip.Addr{netip.MustParseAddr("172.31.0.14")}}, nil
}
func (w *world) PortError(string) error { return nil }
func (w *world) EIPs() map[netip.Addr]netip.Addr {
	return map[netip.Addr]netip.Addr{netip.MustParseAddr("119.26.38.75"): netip.MustParseAddr("172.31.0.14")}
}

func (w *world) flush(_ context.Context, addrs []netip.Addr) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.diary = append(w.diary, "flush: "+addrs[0].String())
	return 1, nil
}

func (w *world) read() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	diary := w.diary
	w.diary = nil
	return diary
}

func newKeeper(t *testing.T, dir string) (*world, *hosts.Keeper) {
	t.Helper()
	w := &world{entries: make(map[string]model.HostEntry)}
	return w, hosts.New(hosts.Options{
		Log: slog.New(slog.DiscardHandler), Store: w, Core: w, Flush: w.flush, Poke: func() {}, Dir: dir,
		Seen: func() bool { w.mu.Lock(); defer w.mu.Unlock(); return !w.unseen },
	})
}

func web() model.HostEntry {
	return model.HostEntry{
		Name: "web", Address: netip.MustParseAddr("172.19.0.100"), Options: map[string]string{model.KeyNIC: "eth1"},
		Publishes: []model.Publish{{Proto: model.TCP, HostIP: netip.MustParseAddr("119.26.38.75"), HostPort: 80, Port: 8080}},
	}
}

// An address is held before its flows are forgotten, and gone after.
func TestAddAndRemove(t *testing.T) {
	w, k := newKeeper(t, "")
	if err := k.Add(t.Context(), web()); err != nil {
		t.Fatal(err)
	}
	if got := k.List(); len(got) != 1 || got[0].Bridge != "br-web" || got[0].Publishes[0].HostIP.String() != "172.31.0.14" {
		t.Errorf("stored: %+v", got)
	}
	if err := k.Add(t.Context(), web()); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := k.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if err := k.Remove(t.Context(), "web"); !errors.Is(err, hosts.ErrUnknown) {
		t.Errorf("again: %v", err)
	}
	want := []string{"pass: web eth1", "pass: web leaving eth1", "flush: 172.19.0.100", "pass: "}
	if diff := cmp.Diff(want, w.read()); diff != "" {
		t.Errorf("in the order (-want +got):\n%s", diff)
	}
	w.fail = errors.New("no")
	if err := k.Add(t.Context(), web()); err == nil || len(k.List()) > 0 {
		t.Errorf("a pass that failed: %v, left %+v", err, k.List())
	}
	w.unseen = true
	if err := k.Add(t.Context(), web()); err == nil || !strings.Contains(err.Error(), "docker has not answered") {
		t.Errorf("before Docker has answered: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	_, k := newKeeper(t, "")
	if err := k.Add(t.Context(), web()); err != nil {
		t.Fatal(err)
	}
	for want, edit := range map[string]func(e *model.HostEntry){
		"is there already":              func(e *model.HostEntry) { e.Name = "web" },
		"each has its own":              func(e *model.HostEntry) { e.Bridge = "br-web" },
		"web has address 172.19.0.100":  func(e *model.HostEntry) { e.Address = netip.MustParseAddr("172.19.0.100") },
		"in 172.20.0.0/16":              func(e *model.HostEntry) { e.Address = netip.MustParseAddr("172.20.0.9") },
		"bridge name eip_bridge":        func(e *model.HostEntry) { e.Bridge = "eip_bridge" },
		"in use by a link":              func(e *model.HostEntry) { e.Bridge = "eth1" },
		"in 172.31.0.0/20 of eth1":      func(e *model.HostEntry) { e.Address = netip.MustParseAddr("172.31.0.99") },
		"no such NIC on this host":      func(e *model.HostEntry) { e.Options = map[string]string{model.KeyNIC: "eth7"} },
		"neither on this host nor a kn": func(e *model.HostEntry) { e.Publishes[0].HostIP = netip.MustParseAddr("172.31.0.15") },
	} {
		e := web()
		e.Name, e.Address = "other", netip.MustParseAddr("172.19.0.101")
		edit(&e)
		if err := k.Add(t.Context(), e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to say %q", err, want)
		}
	}
}

// The folder is followed: new files, changed, broken and removed ones.
func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "host.d") // comes later
	w, k := newKeeper(t, dir)
	gone := web()
	gone.Name, gone.Leaving = "gone", true // a removal that was interrupted
	w.entries["gone"] = gone
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	defer func() { stop(); <-ended }()
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(entries string, problems ...string) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for {
			var got []string
			for _, e := range w.HostEntries() {
				got = append(got, e.Name+" "+e.Options[model.KeyNIC]+" "+e.Address.String())
			}
			said := k.Problems()
			ok := strings.Join(got, ", ") == entries && len(said) == len(problems)
			for i := range problems {
				ok = ok && said[i].Code == model.CodeBadFile && strings.Contains(said[i].Text, problems[i])
			}
			if ok {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("there are %q and problems %v, want %q and %q", got, said, entries, problems)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	expect("")
	write("web.json", `{"nic": "eth1", "address": "172.19.0.100", "publish": ["8090:80"], "options": {"eip.except": "10.0.0.0/8"}}`)
	write("README", `nothing`)
	expect("web eth1 172.19.0.100")
	write("later.json", `{"nic": "eth7", "address": "172.19.0.107"}`) // a NIC may come later
	expect("later eth7 172.19.0.107, web eth1 172.19.0.100")
	write("web.json", `{"nic": "eth1", "ip": "172.19.0.100"}`)
	expect("later eth7 172.19.0.107, web eth1 172.19.0.100", "unknown field")
	write("web.json", `{"nic": "eth2", "address": "172.19.0.100"}`)
	expect("later eth7 172.19.0.107, web eth2 172.19.0.100")
	write("web.json", `{"nic": "eth2", "address": "172.19.0.108"}`)
	expect("later eth7 172.19.0.107, web eth2 172.19.0.108")
	write("second.json", `{"nic": "eth2", "address": "172.19.0.108"}`)
	expect("later eth7 172.19.0.107, web eth2 172.19.0.108", "web has address 172.19.0.108")
	for text, why := range map[string]string{ // what cannot be had takes nothing away
		`{"nic": "eth2", "address": "172.31.0.9"}`:                      "in 172.31.0.0/20 of eth1",
		`{"nic": "eth2", "address": "172.19.0.107"}`:                    "later has address 172.19.0.107",
		`{"nic": "eth2", "address": "172.19.0.108", "bridge": "eth1"}`:  "in use by a link",
		`{"nic": "eth2", "address": "172.19.0.109", "bridge": "br-web"`: "ends within the object",
	} {
		write("web.json", text)
		expect("later eth7 172.19.0.107, web eth2 172.19.0.108", "web has address 172.19.0.108", why)
	}
	write("second.json", `{"nic": "eth2", "address": "172.19.0.110"}`)
	write("web.json", `{"nic": "eth2", "address": "172.19.0.107"}`) // they change places
	write("later.json", `{"nic": "eth7", "address": "172.19.0.108"}`)
	expect("later eth7 172.19.0.108, second eth2 172.19.0.110, web eth2 172.19.0.107")
	write("later.json", `{"nic": "eth7", "address": "172.19.0.107"}`)
	write("web.json", `{"nic": "eth2", "address": "172.19.0.108"}`)
	write("second.json", `{"nic": "eth2", "address": "172.19.0.108"}`)
	expect("later eth7 172.19.0.107, second eth2 172.19.0.110, web eth2 172.19.0.108", "web has address 172.19.0.108")
	if err := os.Remove(filepath.Join(dir, "web.json")); err != nil {
		t.Fatal(err)
	}
	expect("later eth7 172.19.0.107, second eth2 172.19.0.108")
	if err := k.Remove(t.Context(), "second"); err == nil || !strings.Contains(err.Error(), "remove that file") {
		t.Errorf("by command: %v", err)
	}
	file := dir + ".file" // at one stroke: a folder that is not there says that there are no entries
	exchange := func() error { return unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, file, unix.RENAME_EXCHANGE) }
	if err := errors.Join(os.WriteFile(file, nil, 0o644), exchange()); err != nil {
		t.Fatal(err)
	}
	expect("later eth7 172.19.0.107, second eth2 172.19.0.108", "reading the folder") // which takes nothing away
	if err := exchange(); err != nil {
		t.Fatal(err)
	}
	expect("later eth7 172.19.0.107, second eth2 172.19.0.108")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	expect("")
}
