package driver_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/driver/drivertest"
	"github.com/eipnet/eipnet/internal/model"
)

// meeting is a store whose first writer waits until a second call has read what
// it is about to change, or shows for a while that it does not come.
type meeting struct {
	*drivertest.Store
	mu      sync.Mutex
	reads   int
	writes  int
	second  chan struct{} // closed when it has read
	written []model.Publish
}

func newMeeting(s *drivertest.Store) *meeting { return &meeting{Store: s, second: make(chan struct{})} }

func (m *meeting) read() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reads++; m.reads == 2 {
		close(m.second)
	}
}

func (m *meeting) write() {
	m.mu.Lock()
	m.writes++
	first := m.writes == 1
	m.mu.Unlock()
	if !first {
		return
	}
	select {
	case <-m.second:
	case <-time.After(200 * time.Millisecond):
	}
}

func (m *meeting) Networks() []model.Network {
	defer m.read()
	return m.Store.Networks()
}

func (m *meeting) PutNetwork(n model.Network) error {
	m.write()
	return m.Store.PutNetwork(n)
}

func (m *meeting) Endpoints() []model.Endpoint {
	defer m.read()
	return m.Store.Endpoints()
}

func (m *meeting) UpdateEndpoint(id string, fn func(*model.Endpoint)) error {
	m.write()
	return m.Store.UpdateEndpoint(id, func(e *model.Endpoint) {
		fn(e)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.written = append(m.written, e.Publishes...)
	})
}

// Two networks at once must not get the same subnet.
func TestCreateNetworksAtTheSameTime(t *testing.T) {
	h := newHarness(t)
	o := h.Options()
	o.Store = newMeeting(h.Store)
	h.use(o)
	var mu sync.Mutex
	var refused []string
	var group sync.WaitGroup
	for _, id := range []string{"first", "second"} {
		group.Go(func() {
			_, errText := h.call("CreateNetwork", networkReq(id, nil))
			mu.Lock()
			defer mu.Unlock()
			if errText != "" {
				refused = append(refused, errText)
			}
		})
	}
	group.Wait()
	stored := h.Store.Networks()
	if len(stored) != 1 {
		t.Fatalf("%d networks with one subnet", len(stored))
	}
	want := []string{"subnet 172.19.0.0/16 overlaps 172.19.0.0/16 of eipnet network " + stored[0].ID + " (bridge eip-" + stored[0].ID + ")"}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("refused (-want +got)\n%s", diff)
	}
}

// Two containers at once must not choose the same port of a range, to find out
// only in the pass.
func TestPublishAtTheSameTime(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	h.joined(epB, "172.19.0.3/16")
	m := newMeeting(h.Store)
	o := h.Options()
	o.Store = m
	h.use(o)
	var group sync.WaitGroup
	for _, id := range []string{epA, epB} {
		group.Go(func() {
			h.ok("ProgramExternalConnectivity", programReq(id, ports(binding(17, "", 22500, 22501, 53))))
		})
	}
	group.Wait()
	var chosen []uint16
	for _, p := range m.written {
		chosen = append(chosen, p.HostPort)
	}
	slices.Sort(chosen)
	if diff := cmp.Diff([]uint16{22500, 22501}, chosen); diff != "" {
		t.Errorf("chosen (-want +got)\n%s", diff)
	}
}

// interrupted is a store in the middle of whose first write another call
// begins. The write goes on when that call has ended, or waits for this one.
type interrupted struct {
	*drivertest.Store
	once sync.Once
	call func()
	done chan struct{}
}

func newInterrupted(h *harness, call func()) *interrupted {
	i := &interrupted{Store: h.Store, call: call, done: make(chan struct{})}
	o := h.Options()
	o.Store = i
	h.use(o)
	return i
}

func (i *interrupted) interrupt() {
	i.once.Do(func() {
		go func() { defer close(i.done); i.call() }()
		select {
		case <-i.done:
		case <-time.After(100 * time.Millisecond):
		}
	})
}

func (i *interrupted) PutNetwork(n model.Network) error {
	i.interrupt()
	return i.Store.PutNetwork(n)
}

func (i *interrupted) DeleteNetwork(id string) error {
	i.interrupt()
	return i.Store.DeleteNetwork(id)
}

func (i *interrupted) PutEndpoint(e model.Endpoint) error {
	i.interrupt()
	return i.Store.PutEndpoint(e)
}

func TestCreateEndpointWhileItsNetworkIsSwept(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	var errText string
	i := newInterrupted(h, func() { _, errText = h.call("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil)) })
	h.driver.Sweep(t.Context(), only(), only())
	<-i.done
	if want := "network 0a1b2c3d4e5f is not known to eipnet (is its state gone?): remove it and create it again"; errText != want || len(h.Store.Endpoints()) > 0 {
		t.Errorf("got error %q, want %q; left: %v", errText, want, h.Store.Endpoints())
	}
}
