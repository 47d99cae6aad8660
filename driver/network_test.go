package driver_test

import (
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
)

var compareAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

const (
	forms = "accepted: eip.nic=eth1, eip.ip=172.31.0.14, eip.public=119.26.38.75, eip.mac=02:42:ac:1f:00:0e (exactly one of these four); " +
		"beside it eip.ip6=2001:db8::14, eip.fallback=hold|host|eth2,eth3, eip.except=10.0.0.0/8,192.168.0.0/16"
	networkForms = forms + "; a network also eip.allow=eth1,eth2, eip.lock=true, eip.strict=false"
	nicList      = "NICs of this host: eth0 (172.31.0.8, primary), eth1 (172.31.0.14)"
	networkAll   = "accepted: eip.nic, eip.ip, eip.public, eip.mac, eip.ip6, eip.fallback, eip.except, eip.allow, eip.lock, com.docker.network.bridge.name, " +
		"com.docker.network.bridge.enable_icc, com.docker.network.bridge.enable_ip_masquerade, com.docker.network.bridge.host_binding_ipv4, " +
		"com.docker.network.bridge.gateway_mode_ipv4=nat|isolated, com.docker.network.bridge.gateway_mode_ipv6=nat|isolated, " +
		"com.docker.network.driver.mtu, com.docker.network.container_iface_prefix, com.docker.network.advertise_addr_nmsgs, com.docker.network.advertise_addr_ms"
)

func TestCreateNetwork(t *testing.T) {
	h := newHarness(t)
	req := object{
		"NetworkID": netID,
		"Options": object{
			"com.docker.network.enable_ipv4": true, "com.docker.network.enable_ipv6": false, "com.docker.network.internal": true,
			"com.docker.network.generic": object{
				"com.docker.network.bridge.name": "eip_bridge", "com.docker.network.driver.mtu": "1400",
				"com.docker.network.container_iface_prefix": "net", "com.docker.network.advertise_addr_nmsgs": "0", "com.docker.network.advertise_addr_ms": "100",
				"com.docker.network.bridge.enable_icc": "false", "com.docker.network.bridge.enable_ip_masquerade": "0",
				"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1", "com.docker.network.bridge.gateway_mode_ipv4": "nat",
				"eip.nic": "eth1", "eip.fallback": "host",
			},
		},
		"IPv4Data": []object{{"Pool": "172.19.0.0/16", "Gateway": "172.19.0.1/16"}},
	}
	h.ok("CreateNetwork", req)
	want := []model.Network{{
		ID: netID, Bridge: "eip_bridge", MTU: 1400, IfPrefix: "net", Internal: true,
		Subnet4: netip.MustParsePrefix("172.19.0.0/16"), Gateway4: netip.MustParseAddr("172.19.0.1"),
		Options: map[string]string{"eip.nic": "eth1", "eip.fallback": "host"},
		NoICC:   true, NoMasquerade: true, HostBinding: netip.MustParseAddr("127.0.0.1"),
	}}
	if diff := cmp.Diff(want, h.Store.Networks(), compareAddrs); diff != "" {
		t.Errorf("stored (-want +got)\n%s", diff)
	}
	h.ok("CreateNetwork", req)
	if got := h.Core.Passes(); got != 1 {
		t.Errorf("%d passes, want 1", got)
	}
	h.fails("CreateNetwork", networkReq(netID, nil), "network 0a1b2c3d4e5f exists already with other options")
}

func TestCreateNetworkDefaults(t *testing.T) {
	for name, options := range map[string]object{
		"engine 27 without options": {"com.docker.network.enable_ipv6": false},
		"generic is no map":         {"com.docker.network.generic": "nonsense"},
		"generic is null":           {"com.docker.network.generic": nil},
		"no options":                nil,
		"booleans as text":          {"com.docker.network.enable_ipv4": "true", "com.docker.network.enable_ipv6": "false", "com.docker.network.internal": "false"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			req := networkReq(netID, nil)
			req["Options"] = options
			h.ok("CreateNetwork", req)
			want := []model.Network{{
				ID: netID, Bridge: "eip-0a1b2c3d4e5",
				Subnet4: netip.MustParsePrefix("172.19.0.0/16"), Gateway4: netip.MustParseAddr("172.19.0.1"),
			}}
			if diff := cmp.Diff(want, h.Store.Networks(), compareAddrs); diff != "" {
				t.Errorf("stored (-want +got)\n%s", diff)
			}
		})
	}
}

func TestCreateNetworkRefuses(t *testing.T) {
	pool := func(pool, gateway string) object { return object{"Pool": pool, "Gateway": gateway} }
	with := func(change object) object {
		req := networkReq("second", nil)
		maps.Copy(req, change)
		return req
	}
	generic := func(key, value string) object { return networkReq("second", object{key: value}) }
	tests := []struct {
		name string
		req  object
		want string
	}{
		{"unknown option", generic("com.docker.network.bridge.enable_iccc", "false"), "unknown network option com.docker.network.bridge.enable_iccc; " + networkAll},
		{
			"option without a place here", generic("com.docker.network.bridge.inhibit_ipv4", "true"),
			"network option com.docker.network.bridge.inhibit_ipv4 is not supported on eipnet networks: the bridge's address is the containers' way out; " + networkAll,
		},
		{
			"gateway mode", generic("com.docker.network.bridge.gateway_mode_ipv4", "routed"),
			"com.docker.network.bridge.gateway_mode_ipv4=routed is not supported on eipnet networks, only nat and, with --internal, isolated are: containers leave with a NIC's address and are reached by published ports only",
		},
		{
			"isolated, and not internal", generic("com.docker.network.bridge.gateway_mode_ipv6", "isolated"),
			"com.docker.network.bridge.gateway_mode_ipv6=isolated is for --internal networks only",
		},
		{"no boolean", generic("com.docker.network.bridge.enable_icc", "off"), `com.docker.network.bridge.enable_icc="off" is neither true nor false`},
		{"no host address", generic("com.docker.network.bridge.host_binding_ipv4", "::1"), `com.docker.network.bridge.host_binding_ipv4="::1" is no IPv4 address`},
		{"unknown eip option", generic("eip.nick", "eth1"), "unknown option eip.nick; " + networkForms},
		{"bad MAC", generic("eip.mac", "02:42"), `eip.mac="02:42" is no MAC address; ` + networkForms},
		{"unknown NIC", generic("eip.nic", "eth7"), "eip.nic=eth7: no such NIC on this host; " + nicList},
		{"unknown address", generic("eip.ip", "172.31.0.99"), "eip.ip=172.31.0.99: no NIC of this host has this address; " + nicList},
		{"unknown MAC", generic("eip.mac", "02:00:00:00:00:99"), "eip.mac=02:00:00:00:00:99: no such NIC on this host; " + nicList},
		{"unknown EIP", generic("eip.public", "119.26.38.99"), "eip.public=119.26.38.99: nobody told which private address this EIP belongs to; name it with --eip 119.26.38.99=PRIVATE-ADDRESS"},
		{"long bridge name", generic("com.docker.network.bridge.name", "a-bridge-name-too-long"), `com.docker.network.bridge.name="a-bridge-name-too-long" is no interface name of 1 to 15 characters`},
		{"bridge name of a path", generic("com.docker.network.bridge.name", "../x"), `com.docker.network.bridge.name="../x" is no interface name of 1 to 15 characters`},
		{"bridge name of a NIC", generic("com.docker.network.bridge.name", "eth1"), "bridge name eth1 is already in use by a link of this host"},
		{"bridge name of a link", generic("com.docker.network.bridge.name", "wg0"), "bridge name wg0 is already in use by a link of this host"},
		{"bridge name of Docker's", generic("com.docker.network.bridge.name", "docker0"), "bridge name docker0 is already in use by Docker"},
		{"bridge name of ours", generic("com.docker.network.bridge.name", "eip_bridge"), "bridge name eip_bridge is already in use by eipnet network 0a1b2c3d4e5f"},
		{"MTU", generic("com.docker.network.driver.mtu", "9e3"), `com.docker.network.driver.mtu="9e3" is no MTU of 68 to 65535`},
		{"prefix", generic("com.docker.network.container_iface_prefix", "e t h"), `com.docker.network.container_iface_prefix="e t h" is no interface name prefix of 1 to 12 characters`},
		{"no pool", with(object{"IPv4Data": nil}), "an eipnet network needs an IPv4 subnet: Docker gave none"},
		{"null IPAM", with(object{"IPv4Data": []object{pool("0.0.0.0/0", "")}}), "an eipnet network needs an IPv4 subnet, not 0.0.0.0/0: the null IPAM driver gives out no addresses, use the default one"},
		{"no gateway", with(object{"IPv4Data": []object{pool("10.9.0.0/24", "")}}), "an eipnet network needs an IPv4 gateway, as that is its bridge's address: Docker gave none for 10.9.0.0/24"},
		{"another router", with(object{"IPv4Data": []object{{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24", "AuxAddresses": object{"DefaultGatewayIPv4": "10.9.0.254/24"}}}}), "--aux-address DefaultGatewayIPv4 is not supported on eipnet networks: containers leave by their bridge's address, which is --gateway"},
		{"gateway elsewhere", with(object{"IPv4Data": []object{pool("10.9.0.0/24", "10.8.0.1/24")}}), "the gateway 10.8.0.1 is not in the subnet 10.9.0.0/24"},
		{"two pools", with(object{"IPv4Data": []object{pool("10.9.0.0/24", "10.9.0.1/24"), pool("10.8.0.0/24", "10.8.0.1/24")}}), "an eipnet network has one IPv4 subnet, not 2: make a network for each"},
		{"IPv6 without a pool", with(object{"IPv4Data": []object{pool("10.9.0.0/24", "10.9.0.1/24")}, "Options": object{"com.docker.network.enable_ipv6": "true"}}), "an eipnet network needs an IPv6 subnet: Docker gave none"},
		{"no family", with(object{"Options": object{"com.docker.network.enable_ipv4": false}}), "an eipnet network needs IPv4 or IPv6: both are switched off"},
		{"overlaps a NIC", with(object{"IPv4Data": []object{pool("172.31.8.0/24", "172.31.8.1/24")}}), "subnet 172.31.8.0/24 overlaps 172.31.0.8/20 of NIC eth0"},
		{"overlaps Docker", with(object{"IPv4Data": []object{pool("172.16.0.0/15", "172.16.0.1/15")}}), "subnet 172.16.0.0/15 overlaps 172.17.0.0/16 of Docker's bridge docker0"},
		{"overlaps a host entry", with(object{"IPv4Data": []object{pool("10.7.0.0/24", "10.7.0.1/24")}}), "subnet 10.7.0.0/24 overlaps 10.7.0.9/32 of host entry web (bridge br-web)"},
		{"bridge name of a host entry", generic("com.docker.network.bridge.name", "br-web"), "bridge name br-web is already in use by host entry web"},
		{"overlaps ours", networkReq("second", nil), "subnet 172.19.0.0/16 overlaps 172.19.0.0/16 of eipnet network 0a1b2c3d4e5f (bridge eip_bridge)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.Store.Hosts = []model.HostEntry{{Name: "web", Bridge: "br-web", Address: netip.MustParseAddr("10.7.0.9")}}
			h.network(object{"com.docker.network.bridge.name": "eip_bridge"})
			h.fails("CreateNetwork", tt.req, tt.want)
			if got := len(h.Store.Networks()); got != 1 {
				t.Errorf("%d networks stored, want 1", got)
			}
		})
	}
}

func TestDualStack(t *testing.T) {
	for _, tc := range []struct {
		name   string
		v4     bool
		mac    string
		iface  object
		joined string
	}{
		{
			"both", true, "02:42:ac:13:00:02",
			object{"Address": "172.19.0.2/16", "AddressIPv6": "fd00:9::2/64"},
			`"Gateway":"172.19.0.1","GatewayIPv6":"fd00:9::1"`,
		},
		{"IPv6 alone", false, "02:42:fd:00:00:0b", object{"AddressIPv6": "fd00:9::2/64"}, `"GatewayIPv6":"fd00:9::1"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHarness(t)
			req := networkReq(netID, nil)
			req["Options"] = object{"com.docker.network.enable_ipv4": tc.v4, "com.docker.network.enable_ipv6": true}
			req["IPv6Data"] = []object{{"Pool": "fd00:9::/64", "Gateway": "fd00:9::1/64"}}
			want := model.Network{
				ID: netID, Bridge: "eip-0a1b2c3d4e5",
				Subnet6: netip.MustParsePrefix("fd00:9::/64"), Gateway6: netip.MustParseAddr("fd00:9::1"),
			}
			if tc.v4 {
				want.Subnet4, want.Gateway4 = netip.MustParsePrefix("172.19.0.0/16"), netip.MustParseAddr("172.19.0.1")
			}
			h.ok("CreateNetwork", req)
			if diff := cmp.Diff([]model.Network{want}, h.Store.Networks(), compareAddrs); diff != "" {
				t.Errorf("stored (-want +got)\n%s", diff)
			}
			got := h.ok("CreateEndpoint", object{"NetworkID": netID, "EndpointID": epA, "Interface": tc.iface})
			if want := `{"Interface":{"MacAddress":"` + tc.mac + `"}}`; got != want {
				t.Errorf("CreateEndpoint: got %s, want %s", got, want)
			}
			got = h.ok("Join", joinReq(epA))
			if want := `{"InterfaceName":{"SrcName":"eipcaaaaaaaaaaa","DstPrefix":"eth"},` + tc.joined + `}`; got != want {
				t.Errorf("Join: got %s, want %s", got, want)
			}
		})
	}
}

// docker network rm and create again: the pass that deletes the bridge has
// still seen it, and no other pass has run since.
func TestCreateNetworkWithTheBridgeOfOneJustDeleted(t *testing.T) {
	h := newHarness(t)
	for _, id := range []string{"first", "second", "third"} {
		h.ok("CreateNetwork", networkReq(id, object{"com.docker.network.bridge.name": "eip_bridge"}))
		h.ok("DeleteNetwork", object{"NetworkID": id})
	}
}

// What is missing may still come while dockerd boots, or come back.
func TestCreateNetworkWithANICThatIsNotThere(t *testing.T) {
	t.Run("at boot", func(t *testing.T) {
		h := newHarness(t)
		h.Labels.Set(false, false)
		h.network(object{"eip.nic": "eth7"})
	})
	t.Run("known", func(t *testing.T) {
		h := newHarness(t)
		h.Store.NICs["eth7"] = true
		h.network(object{"eip.nic": "eth7"})
	})
}

func TestCreateNetworkRollsBack(t *testing.T) {
	h := newHarness(t)
	h.Core.Fail(errors.New("kernel says no"))
	h.fails("CreateNetwork", networkReq(netID, nil), "making bridge eip-0a1b2c3d4e5: kernel says no")
	if left := h.Store.Networks(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if got := h.Core.Passes(); got != 2 {
		t.Errorf("%d passes, want 2", got)
	}
	h.network(nil)

	h.Store.Fail(errors.New("disk full"))
	req := networkReq("second", nil)
	req["IPv4Data"] = []object{{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}}
	h.fails("CreateNetwork", req, "storing network second: disk full")
}

// TestIsolated: the bridge of an isolated network has no address.
func TestIsolated(t *testing.T) {
	for _, tc := range []struct {
		mode4, mode6 string
		want4, want6 string
	}{
		{"isolated", "isolated", "", ""},
		{"nat", "isolated", "172.19.0.1", ""},
		{"isolated", "nat", "", "fd00:9::1"},
	} {
		h := newHarness(t)
		req := networkReq(netID, object{"com.docker.network.bridge.gateway_mode_ipv4": tc.mode4, "com.docker.network.bridge.gateway_mode_ipv6": tc.mode6})
		options := req["Options"].(object)
		options["com.docker.network.internal"], options["com.docker.network.enable_ipv6"] = true, true
		req["IPv6Data"] = []object{{"Pool": "fd00:9::/64", "Gateway": "fd00:9::1/64"}}
		h.ok("CreateNetwork", req)
		n := h.Store.Networks()[0]
		got := func(a netip.Addr) string {
			if !a.IsValid() {
				return ""
			}
			return a.String()
		}
		if got(n.Gateway4) != tc.want4 || got(n.Gateway6) != tc.want6 {
			t.Errorf("%s, %s: gateways %v and %v", tc.mode4, tc.mode6, n.Gateway4, n.Gateway6)
		}
	}
}

// What the page about Docker's bridge lists as refused is refused.
func TestRefused(t *testing.T) {
	for key, why := range driver.Refused() {
		req := networkReq(netID, nil)
		switch name, _, aux := strings.Cut(strings.TrimPrefix(key, "--aux-address "), "=…"); {
		case aux:
			req["IPv4Data"].([]object)[0]["AuxAddresses"] = object{name: "172.19.0.254/16"}
		default:
			option, value, _ := strings.Cut(name, "=")
			req = networkReq(netID, object{option: value})
		}
		if _, got := newHarness(t).call("CreateNetwork", req); !strings.Contains(got, "not supported on eipnet networks") || !strings.Contains(got, why) {
			t.Errorf("%s: %q", key, got)
		}
	}
}
