package driver_test

import (
	stdcmp "cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/driver/drivertest"
	"github.com/eipnet/eipnet/internal/model"
)

func TestCreateEndpoint(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	req := endpointReq(netID, epA, "172.19.0.2/16", object{
		"eip.nic": "eth1", "com.docker.network.endpoint.macaddress": "Aqq7zN3u", "com.docker.network.portmap": ports(tcp(8090, 8080)),
	})
	if got, want := h.ok("CreateEndpoint", req), `{"Interface":{"MacAddress":"02:42:ac:13:00:02"}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := h.ok("CreateEndpoint", req), `{"Interface":{"MacAddress":"02:42:ac:13:00:02"}}`; got != want {
		t.Errorf("again: got %s, want %s", got, want)
	}
	want := model.Endpoint{
		ID: epA, NetworkID: netID, Phase: model.Created, Addr4: netip.MustParseAddr("172.19.0.2"),
		MAC: "02:42:ac:13:00:02", Options: map[string]string{"eip.nic": "eth1"},
	}
	if diff := cmp.Diff(want, h.endpoint(epA), compareAddrs); diff != "" {
		t.Errorf("stored (-want +got)\n%s", diff)
	}
	req["Interface"] = object{"Address": "172.19.0.3/16"}
	h.fails("CreateEndpoint", req, "endpoint aaaaaaaaaaaa exists already with another address")

	given := endpointReq(netID, epB, "", nil)
	given["Interface"] = object{"Address": "172.19.0.9/16", "MacAddress": "02:AA:BB:CC:DD:EE"}
	if got := h.ok("CreateEndpoint", given); got != `{}` {
		t.Errorf("a MAC that was given must not be answered: %s", got)
	}
	if got := h.endpoint(epB).MAC; got != "02:aa:bb:cc:dd:ee" {
		t.Errorf("MAC %s", got)
	}
	if got := h.Core.Passes(); got != 1 {
		t.Errorf("%d passes, want the network's one", got)
	}
}

func TestCreateEndpointRefuses(t *testing.T) {
	tests := []struct {
		name string
		req  object
		want string
	}{
		{"unknown network", endpointReq("other", epA, "172.19.0.2/16", nil), "network other is not known to eipnet (is its state gone?): remove it and create it again"},
		{"no interface", object{"NetworkID": netID, "EndpointID": epA}, "an endpoint of an eipnet network needs an address: Docker gave none"},
		{"no address", endpointReq(netID, epA, "", nil), "an endpoint of an eipnet network needs an address: Docker gave none"},
		{"nonsense", endpointReq(netID, epA, "172.19.0.2/99", nil), `reading the endpoint's address: "172.19.0.2/99" is no address`},
		{"elsewhere", endpointReq(netID, epA, "172.20.0.2/16", nil), "address 172.20.0.2 is not in the network's subnet"},
		{"unknown option", endpointReq(netID, epA, "172.19.0.2/16", object{"eip.nick": "eth1"}), "unknown option eip.nick; " + forms},
		{"option that is no text", endpointReq(netID, epA, "172.19.0.2/16", object{"eip.ip": 5}), `eip.ip="5" is no IP address; ` + forms},
		{"unknown NIC", endpointReq(netID, epA, "172.19.0.2/16", object{"eip.nic": "eth7"}), "eip.nic=eth7: no such NIC on this host; " + nicList},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.network(nil)
			h.fails("CreateEndpoint", tt.req, tt.want)
			if left := h.Store.Endpoints(); len(left) > 0 {
				t.Errorf("stored: %v", left)
			}
		})
	}
}

func TestJoinAnswers(t *testing.T) {
	h := newHarness(t)
	h.network(object{"com.docker.network.container_iface_prefix": "net"})
	h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
	want := `{"InterfaceName":{"SrcName":"eipcaaaaaaaaaaa","DstPrefix":"net"},"Gateway":"172.19.0.1"}`
	for range 2 {
		if got := h.ok("Join", joinReq(epA)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	h.fails("Join", joinReq(epB), "endpoint bbbbbbbbbbbb is not known to eipnet (is its state gone?): start the container again")
}

func TestJoinOfAnInternalNetworkHasNoGateway(t *testing.T) {
	h := newHarness(t)
	req := networkReq(netID, nil)
	req["Options"] = object{"com.docker.network.internal": true}
	h.ok("CreateNetwork", req)
	h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
	if got, want := h.ok("Join", joinReq(epA)), `{"InterfaceName":{"SrcName":"eipcaaaaaaaaaaa","DstPrefix":"eth"}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(8090, 8080))))
	if got := h.endpoint(epA).Publishes; len(got) > 0 {
		t.Errorf("published on an internal network: %v", got)
	}
}

func TestJoinLabels(t *testing.T) {
	tests := []struct {
		name     string
		network  object
		endpoint object
		labels   map[string]string // nil: Docker does not know the container
		known    []string          // NICs seen earlier
		up, hang bool
		want     string // error
		pending  bool
	}{
		{name: "label", labels: map[string]string{"eip.nic": "eth1"}, up: true},
		{name: "EIP", labels: map[string]string{"eip.public": "119.26.38.75"}, up: true},
		{name: "no label of ours", labels: map[string]string{"com.example": "x"}, up: true},
		{name: "malformed", labels: map[string]string{"eip.ip": "eth1"}, up: true, want: `pinning app: label: eip.ip="eth1" is no IP address; ` + forms},
		{name: "unknown key", labels: map[string]string{"eip.nick": "eth1"}, up: true, want: "pinning app: label: unknown option eip.nick; " + forms},
		{name: "NIC never seen", labels: map[string]string{"eip.nic": "eth7"}, up: true, want: "eip.nic=eth7: no such NIC on this host; " + nicList},
		{name: "NIC known but gone", labels: map[string]string{"eip.nic": "eth7"}, known: []string{"eth7"}, up: true},
		{name: "only the selector in effect is looked up", endpoint: object{"eip.nic": "eth0"}, labels: map[string]string{"eip.nic": "eth7"}, up: true},
		{name: "label over network", network: object{"eip.nic": "eth0"}, labels: map[string]string{"eip.nic": "eth7"}, up: true, want: "eip.nic=eth7: no such NIC on this host; " + nicList},
		{name: "Docker does not know", up: true, pending: true},
		{name: "Docker does not answer", labels: map[string]string{"eip.nic": "eth1"}, up: true, hang: true, pending: true},
		{name: "boot", labels: map[string]string{"eip.nick": "eth1"}, hang: true, pending: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.network(tt.network)
			h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", tt.endpoint))
			for _, nic := range tt.known {
				h.Store.NICs[nic] = true
			}
			h.Labels.Set(tt.up, tt.hang)
			if tt.labels != nil {
				labels := map[string]string{"other": "label"}
				maps.Copy(labels, tt.labels)
				h.Labels.Add(epA, model.Container{ID: "c1", Name: "app", Labels: labels})
			}
			h.fails("Join", joinReq(epA), tt.want)

			e := h.endpoint(epA)
			if asked := h.Labels.Asked(); !tt.up && asked > 0 {
				t.Errorf("asked Docker %d times while it boots", asked)
			}
			if tt.want != "" {
				if e.Phase != model.Created || len(h.Links.Veths()) > 0 {
					t.Errorf("refused, but: %+v, %v", e, h.Links.Veths())
				}
				return
			}
			want := model.Container{}
			if !tt.pending {
				want = model.Container{Known: true, ID: "c1", Name: "app", Labels: model.EipOnly(tt.labels)}
			}
			if diff := cmp.Diff(want, e.Container); diff != "" {
				t.Errorf("container (-want +got)\n%s", diff)
			}
			if e.Phase != model.Joined || e.Veth != "eipvaaaaaaaaaaa" {
				t.Errorf("stored: %+v", e)
			}
		})
	}
}

// A container that was rebound starts again where it was moved to, whatever its
// label says, and though that NIC is away now.
func TestJoinOfAReboundContainer(t *testing.T) {
	for rebind, want := range map[string]string{"eth0": "", "eth8": "", "": "eip.nic=eth7: no such NIC on this host; " + nicList} {
		h := newHarness(t)
		h.network(nil)
		h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
		h.Labels.Add(epA, model.Container{ID: "c1", Name: "app", Labels: map[string]string{"eip.nic": "eth7"}})
		if rebind != "" {
			h.Store.SetRebind(model.Rebind{ContainerID: "c1", Options: map[string]string{"eip.nic": rebind}})
		}
		h.fails("Join", joinReq(epA), want)
	}
}

// A selector that was good once is never refused again: a container that
// restarts while its NIC is away has to be held, as Docker does not retry.
func TestJoinWithANICThatWentAway(t *testing.T) {
	h := newHarness(t)
	h.network(object{"eip.mac": "02:00:00:00:00:08"})
	label := model.Container{ID: "c1", Name: "app", Labels: map[string]string{"eip.ip": "172.31.0.14"}}
	h.Labels.Add(epA, label)
	h.Labels.Add(epB, label)
	h.joined(epA, "172.19.0.2/16")
	h.Core.Observed.NICs = nil
	h.joined(epB, "172.19.0.3/16")

	plain := "cccc" + epA[4:]
	h.joined(plain, "172.19.0.4/16") // by the network's option alone
}

func TestJoinWhenThePassFails(t *testing.T) {
	t.Run("docker is up", func(t *testing.T) {
		h := newHarness(t)
		h.network(nil)
		h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
		h.Core.Fail(errors.New("kernel says no"))
		h.fails("Join", joinReq(epA), "pinning endpoint aaaaaaaaaaaa: kernel says no")
		if e := h.endpoint(epA); e.Phase != model.Created || e.Veth != "" {
			t.Errorf("stored: %+v", e)
		}
		if left := h.Links.Veths(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		h.ok("Join", joinReq(epA))
		h.Core.Fail(errors.New("kernel says no"))
		h.fails("Join", joinReq(epA), "pinning endpoint aaaaaaaaaaaa: kernel says no")
		if len(h.Links.Veths()) != 1 {
			t.Error("a repeated join took the running container's veth")
		}
	})
	t.Run("boot", func(t *testing.T) {
		h := newHarness(t)
		h.network(nil)
		h.Labels.Set(false, false)
		h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
		h.Core.Fail(errors.New("kernel says no"))
		h.ok("Join", joinReq(epA))
		if e := h.endpoint(epA); e.Phase != model.Joined || len(h.Links.Veths()) != 1 {
			t.Errorf("stored: %+v", e)
		}
	})
	t.Run("the bridge is not there yet", func(t *testing.T) {
		h := newHarness(t)
		if err := h.Store.PutNetwork(model.Network{ // as after a reboot: stored, and no pass yet
			ID: netID, Bridge: "eip_bridge", Subnet4: netip.MustParsePrefix("172.19.0.0/16"), Gateway4: netip.MustParseAddr("172.19.0.1"),
		}); err != nil {
			t.Fatal(err)
		}
		h.joined(epA, "172.19.0.2/16")
	})
	t.Run("the bridge cannot be made", func(t *testing.T) {
		h := newHarness(t)
		if err := h.Store.PutNetwork(model.Network{ID: netID, Bridge: "eip_bridge", Subnet4: netip.MustParsePrefix("172.19.0.0/16")}); err != nil {
			t.Fatal(err)
		}
		h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
		h.Core.Fail(errors.New("kernel says no"))
		h.fails("Join", joinReq(epA), "adding the veth of endpoint aaaaaaaaaaaa: no such bridge eip_bridge; making its bridge: kernel says no")
		h.Core.Break("eip_bridge", errors.New("device or resource busy"))
		h.fails("Join", joinReq(epA), "adding the veth of endpoint aaaaaaaaaaaa: no such bridge eip_bridge; making its bridge: device or resource busy")
	})
	t.Run("the disk is full", func(t *testing.T) {
		h := newHarness(t)
		h.network(nil)
		h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
		h.Store.Fail(errors.New("disk full"))
		h.fails("Join", joinReq(epA), "storing endpoint aaaaaaaaaaaa: disk full")
		if left := h.Links.Veths(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// What is broken about one network is no reason to refuse what another's
// containers ask for.
func TestABrokenNetworkConcernsItsOwnContainersOnly(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	second := networkReq("second", nil)
	second["IPv4Data"] = []object{{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}}
	h.Core.Break("eip-second", errors.New("device or resource busy"))
	h.fails("CreateNetwork", second, "making bridge eip-second: device or resource busy")

	h.Core.Break("eip-second", nil)
	h.ok("CreateNetwork", second)
	h.ok("CreateEndpoint", endpointReq("second", epB, "10.9.0.2/24", nil))
	h.Core.Break("eip-second", errors.New("device or resource busy"))
	h.joined(epA, "172.19.0.2/16")
	h.ok("ProgramExternalConnectivity", programReq(epA, ports(tcp(80, 80))))
	h.fails("Join", ref("second", epB), "pinning endpoint bbbbbbbbbbbb: device or resource busy")
	h.ok("DeleteEndpoint", ref("second", epB))
	h.ok("DeleteNetwork", object{"NetworkID": "second"})
	for _, failed := range []string{"leaving failed", "deleting an endpoint failed", "deleting a network failed"} {
		if strings.Contains(h.log.String(), failed) {
			t.Errorf("logged: %s", failed)
		}
	}
}

// A pin is the container's: what its networks say about it together has to fit,
// and that it does not is told when it is connected.
func TestJoinOfASecondNetwork(t *testing.T) {
	left := func(h *harness) { h.ok("Leave", ref(netID, epA)) }
	tests := []struct {
		name            string
		first, second   object // options of the networks
		firstE, secondE object // and of the endpoints
		container       string // of the second endpoint
		unknown         bool   // both
		before          func(*harness)
		want            string
	}{
		{name: "endpoint options agree", firstE: object{"eip.nic": "eth1"}, secondE: object{"eip.nic": "eth1"}},
		{name: "endpoint options contradict", firstE: object{"eip.nic": "eth1"}, secondE: object{"eip.nic": "eth0"}, want: "pinning app: endpoint option: eip.nic=eth1 and eip.nic=eth0 contradict each other; say one of them"},
		{name: "network options contradict", first: object{"eip.nic": "eth1"}, second: object{"eip.nic": "eth0"}, want: "pinning app: network option: eip.nic=eth1 and eip.nic=eth0 contradict each other; say one of them"},
		{name: "beyond the first network's lock", first: object{"eip.nic": "eth1", "eip.lock": "true"}, secondE: object{"eip.nic": "eth0"}, want: "pinning app: the network of bridge eip-0a1b2c3d4e5 is locked (eip.lock): its containers may not choose eip.nic=eth0"},
		{name: "beyond what the second allows", first: object{"eip.nic": "eth1"}, second: object{"eip.allow": "eth0"}, want: "eip.nic=eth1: eth1 is beyond what its network allows (eip.allow=eth0)"},
		{name: "of another container", firstE: object{"eip.nic": "eth1"}, secondE: object{"eip.nic": "eth0"}, container: "c2"},
		{name: "containers that are not known yet", first: object{"eip.nic": "eth1"}, second: object{"eip.allow": "eth0"}, unknown: true},
		{name: "one that left", firstE: object{"eip.nic": "eth1"}, secondE: object{"eip.nic": "eth0"}, before: left},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.network(tt.first)
			second := networkReq("second", tt.second)
			second["IPv4Data"] = []object{{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}}
			h.ok("CreateNetwork", second)
			if !tt.unknown {
				h.Labels.Add(epA, model.Container{ID: "c1", Name: "app"})
				h.Labels.Add(epB, model.Container{ID: stdcmp.Or(tt.container, "c1"), Name: "app"})
			}
			h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", tt.firstE))
			h.ok("Join", joinReq(epA))
			if tt.before != nil {
				tt.before(h)
			}
			h.ok("CreateEndpoint", endpointReq("second", epB, "10.9.0.2/24", tt.secondE))
			h.fails("Join", ref("second", epB), tt.want)
		})
	}
}

// dockerd was killed, and the container connected anew with another option: what
// its lost endpoint said does not count.
func TestJoinIsNotRefusedForAPredecessor(t *testing.T) {
	h := newHarness(t)
	h.network(nil)
	for id, nic := range map[string]string{epA: "eth0", epB: "eth1"} {
		h.Labels.Add(id, model.Container{ID: "c1", Name: "app"})
		h.ok("CreateEndpoint", endpointReq(netID, id, "172.19.0.1"+nic[3:]+"/16", object{"eip.nic": nic}))
		h.ok("Join", joinReq(id))
	}
}

// blindCore has not seen the host yet.
type blindCore struct{ *drivertest.Core }

func (blindCore) Host(context.Context) (model.Host, error) {
	return model.Host{}, errors.New("waiting for the first pass")
}

func TestJoinBeforeTheHostWasSeen(t *testing.T) {
	h := newHarness(t)
	h.network(object{"eip.nic": "eth1", "eip.allow": "eth1"})
	o := h.Options()
	o.Core = blindCore{h.Core}
	h.use(o)
	h.ok("CreateEndpoint", endpointReq(netID, epA, "172.19.0.2/16", nil))
	h.Labels.Add(epA, model.Container{ID: "c1", Name: "app"})
	h.fails("Join", joinReq(epA), "looking at this host's NICs: waiting for the first pass")
	h.Labels.Set(false, false)
	h.ok("Join", joinReq(epA))
}
