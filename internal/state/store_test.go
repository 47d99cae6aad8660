package state

import (
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/eipnet/eipnet/internal/model"
)

var quiet = slog.New(slog.DiscardHandler)

var compare = cmp.Options{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
}

func mustOpen(t testing.TB, path string) *Store {
	t.Helper()
	s, problem, err := Open(path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if problem != nil {
		t.Fatalf("opening %s: %v", path, problem)
	}
	return s
}

func newFile(t testing.TB) (*Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lib", "state.db")
	s := mustOpen(t, path)
	t.Cleanup(func() { _ = s.Close() })
	return s, path
}

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	ids    = rapid.StringMatching(`[0-9a-f]{64}|[a-z0-9]{25}`)
	words  = rapid.StringMatching(`[a-zA-Z0-9_.-]{1,15}`)
	labels = rapid.MapOfN(words, rapid.String(), 0, 4)
)

func addr(t *rapid.T, name string) netip.Addr {
	switch rapid.IntRange(0, 2).Draw(t, name+" family") {
	case 0:
		return netip.Addr{}
	case 1:
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
	}
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name)))
}

func prefix(t *rapid.T, name string) netip.Prefix {
	a := addr(t, name)
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, name+" bits"))
}

func network(t *rapid.T) model.Network {
	return model.Network{
		ID:       ids.Draw(t, "id"),
		Bridge:   words.Draw(t, "bridge"),
		Subnet4:  prefix(t, "subnet4"),
		Gateway4: addr(t, "gateway4"),
		Subnet6:  prefix(t, "subnet6"),
		Gateway6: addr(t, "gateway6"),
		Internal: rapid.Bool().Draw(t, "internal"),
		MTU:      rapid.IntRange(0, 9000).Draw(t, "mtu"),
		IfPrefix: words.Draw(t, "ifprefix"),
		Options:  labels.Draw(t, "options"),
	}
}

func endpoint(t *rapid.T) model.Endpoint {
	e := model.Endpoint{
		ID:        ids.Draw(t, "id"),
		NetworkID: ids.Draw(t, "network"),
		Addr4:     addr(t, "addr4"),
		Addr6:     addr(t, "addr6"),
		MAC:       words.Draw(t, "mac"),
		Veth:      words.Draw(t, "veth"),
		Phase:     rapid.SampledFrom([]model.Phase{model.Created, model.Joined, model.Left}).Draw(t, "phase"),
		Container: model.Container{
			Known:  rapid.Bool().Draw(t, "known"),
			ID:     ids.Draw(t, "container"),
			Name:   words.Draw(t, "name"),
			Labels: labels.Draw(t, "labels"),
		},
		Options: labels.Draw(t, "options"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "publishes") {
		e.Publishes = append(e.Publishes, model.Publish{
			Proto:    model.TCP,
			HostIP:   addr(t, "host ip"),
			HostPort: rapid.Uint16().Draw(t, "host port"),
			Port:     rapid.Uint16().Draw(t, "port"),
		})
	}
	return e
}

// TestRoundTrip does random things to a store and to plain maps, and opens the
// file again now and then: both always say the same.
func TestRoundTrip(t *testing.T) {
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, strconv.Itoa(n))
		s, _, err := Open(path, quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		networks, endpoints := map[string]model.Network{}, map[string]model.Endpoint{}
		nics, originals := map[string]model.NICID{}, map[string]string{}
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		some := func(m []string) string {
			if len(m) == 0 || rapid.Bool().Draw(t, "absent") {
				return ids.Draw(t, "absent id")
			}
			return rapid.SampledFrom(m).Draw(t, "present")
		}
		t.Repeat(map[string]func(*rapid.T){
			"put network": func(t *rapid.T) {
				v := network(t)
				must(s.PutNetwork(v))
				networks[v.ID] = v
			},
			"delete network": func(t *rapid.T) {
				id := some(sorted(networks))
				must(s.DeleteNetwork(id))
				delete(networks, id)
			},
			"put endpoint": func(t *rapid.T) {
				v := endpoint(t)
				must(s.PutEndpoint(v))
				endpoints[v.ID] = v
			},
			"delete endpoint": func(t *rapid.T) {
				id := some(sorted(endpoints))
				must(s.DeleteEndpoint(id))
				delete(endpoints, id)
			},
			"update endpoint": func(t *rapid.T) {
				id := some(sorted(endpoints))
				phase := model.Left
				must(s.UpdateEndpoint(id, func(e *model.Endpoint) { e.Phase, e.ID = phase, "changed" }))
				if e, ok := endpoints[id]; ok {
					e.Phase = phase
					endpoints[id] = e
				}
			},
			"nics": func(t *rapid.T) {
				nics = rapid.MapOfN(words, rapid.Map(rapid.ByteRange(1, 98), func(b byte) model.NICID { return model.NICID(b) }), 0, 4).Draw(t, "nics")
				must(s.SetNICIDs(nics))
			},
			"original": func(t *rapid.T) {
				key := words.Draw(t, "key")
				originals[key] = rapid.String().Draw(t, "value")
				must(s.SetOriginal(key, originals[key]))
			},
			"forget original": func(t *rapid.T) {
				key := some(sorted(originals))
				must(s.DeleteOriginal(key))
				delete(originals, key)
			},
			"open again": func(t *rapid.T) {
				must(s.Close())
				again, problem, err := Open(path, quiet)
				if err != nil || problem != nil {
					t.Fatalf("problem %v, error %v", problem, err)
				}
				s = again
			},
			"": func(t *rapid.T) {
				for _, d := range []string{
					cmp.Diff(values(networks), s.Networks(), compare),
					cmp.Diff(values(endpoints), s.Endpoints(), compare),
					cmp.Diff(nics, s.NICIDs(), compare),
					cmp.Diff(sorted(originals), s.OriginalKeys(), compare),
				} {
					if d != "" {
						t.Fatalf("(-want +got):\n%s", d)
					}
				}
				for key, want := range originals {
					if got, ok := s.Original(key); !ok || got != want {
						t.Fatalf("original %q: %q, %v", key, got, ok)
					}
				}
			},
		})
	})
}

func sorted[T any](m map[string]T) []string { return newTableOf(m).keys() }

func values[T any](m map[string]T) []T { return newTableOf(m).all() }

func newTableOf[T any](m map[string]T) *table[T] {
	t := newTable("", same[T])
	maps.Copy(t.values, m)
	return t
}

func TestFresh(t *testing.T) {
	s, path := newFile(t)
	if !s.Fresh() {
		t.Error("a new file is not fresh")
	}
	mustClose(t, s)
	if s = mustOpen(t, path); s.Fresh() {
		t.Error("an old file is fresh")
	}
	mustClose(t, s)
}

func TestNoWriteIfEqual(t *testing.T) {
	s, _ := newFile(t)
	n := model.Network{ID: "n", Bridge: "br0", Options: map[string]string{"eip.nic": "eth1", "eip.fallback": "hold"}}
	e := model.Endpoint{ID: "e", Phase: model.Joined}
	nics := map[string]model.NICID{"eth0": 1, "eth1": 2}
	change := func() {
		ok(t, s.PutNetwork(n))
		ok(t, s.PutEndpoint(e))
		ok(t, s.SetNICIDs(nics))
		ok(t, s.SetOriginal("k", "v"))
	}
	change()
	if s.writes != 4 {
		t.Errorf("%d writes, want 4", s.writes)
	}
	before := s.db.Stats()
	change()
	ok(t, s.UpdateEndpoint("e", func(e *model.Endpoint) { e.Phase = model.Joined }))
	ok(t, s.UpdateEndpoint("absent", func(*model.Endpoint) { t.Error("called for an absent endpoint") }))
	ok(t, s.DeleteNetwork("absent"))
	ok(t, s.DeleteEndpoint("absent"))
	ok(t, s.DeleteOriginal("absent"))
	if after := s.db.Stats(); s.writes != 4 || after.TxStats.GetWrite() != before.TxStats.GetWrite() {
		t.Errorf("%d writes after nothing changed, want 4", s.writes)
	}
}

func TestNothingShared(t *testing.T) {
	s, _ := newFile(t)
	e := model.Endpoint{
		ID:        "e",
		Options:   map[string]string{"k": "v"},
		Publishes: []model.Publish{{Port: 80}},
		Container: model.Container{Labels: map[string]string{"k": "v"}},
	}
	ok(t, s.PutEndpoint(e))
	spoil := func(e model.Endpoint) {
		e.Options["k"], e.Publishes[0].Port, e.Container.Labels["k"] = "spoilt", 1, "spoilt"
	}
	spoil(e)
	got, _ := s.Endpoint("e")
	spoil(got)
	spoil(s.Endpoints()[0])
	want := model.Endpoint{
		ID:        "e",
		Options:   map[string]string{"k": "v"},
		Publishes: []model.Publish{{Port: 80}},
		Container: model.Container{Labels: map[string]string{"k": "v"}},
	}
	got, _ = s.Endpoint("e")
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	ids := s.NICIDs()
	ids["eth0"] = 1
	if s.NICKnown("eth0") {
		t.Error("the caller's map is the store's")
	}
}

// TestClonesAreDeep fails when a new field of the model is a map, slice or
// pointer that the clone functions do not copy.
func TestClonesAreDeep(t *testing.T) {
	var references func(path string, v reflect.Type) []string
	references = func(path string, v reflect.Type) []string {
		switch {
		case v == reflect.TypeFor[netip.Addr](), v == reflect.TypeFor[netip.Prefix]():
			return nil
		case v.Kind() == reflect.Struct:
			var out []string
			for field := range v.Fields() {
				out = append(out, references(path+"."+field.Name, field.Type)...)
			}
			return out
		case v.Kind() == reflect.Slice:
			return append([]string{path}, references(path+"[]", v.Elem())...)
		case v.Kind() == reflect.Map, v.Kind() == reflect.Pointer, v.Kind() == reflect.Interface:
			return []string{path}
		}
		return nil
	}
	for _, test := range []struct {
		name string
		typ  reflect.Type
		want []string
	}{
		{"network", reflect.TypeFor[model.Network](), []string{".Options"}},
		{"endpoint", reflect.TypeFor[model.Endpoint](), []string{".Container.Labels", ".Container.Ignored", ".Options", ".Publishes"}},
		{"rebind", reflect.TypeFor[model.Rebind](), []string{".Options"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if d := cmp.Diff(test.want, references("", test.typ)); d != "" {
				t.Errorf("clone them too (-want +got):\n%s", d)
			}
		})
	}
}

func TestMoveOriginals(t *testing.T) {
	s, path := newFile(t)
	ok(t, s.SetOriginal("group:eth0", "0 5"))
	ok(t, s.SetOriginal("group:eth1", "7 6"))
	writes := s.writes
	ok(t, s.MoveOriginals(map[string]string{"group:eth1": "0 5", "group:lan1": "7 6"}, []string{"group:eth0"}))
	if s.writes != writes+1 {
		t.Errorf("%d transactions, want one", s.writes-writes)
	}
	mustClose(t, s)
	s = mustOpen(t, path)
	defer mustClose(t, s)
	got := make(map[string]string)
	for _, key := range s.OriginalKeys() {
		got[key], _ = s.Original(key)
	}
	if diff := cmp.Diff(map[string]string{"group:eth1": "0 5", "group:lan1": "7 6"}, got); diff != "" {
		t.Errorf("originals (-want +got):\n%s", diff)
	}
}

func TestNICKnown(t *testing.T) {
	s, _ := newFile(t)
	ok(t, s.SetNICIDs(map[string]model.NICID{"Eth0": 1}))
	for name, want := range map[string]bool{"Eth0": true, "eth0": true, "eth1": false} {
		if got := s.NICKnown(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
