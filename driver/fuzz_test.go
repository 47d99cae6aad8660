package driver

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
)

// FuzzDecode reads each kind of request, and what is parsed of it without a
// host: nothing may panic, and what is accepted has to name what it is about.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `null`, `[]`, `{"NetworkID":"a","EndpointID":"b"}x`, `{"NetworkID":"a","EndpointID":"b"}`,
		`{"NetworkID":"a","Options":{"com.docker.network.enable_ipv6":true,"com.docker.network.generic":{"eip.nic":"eth1","com.docker.network.driver.mtu":"1400"}},
		  "IPv4Data":[{"AuxAddresses":{},"Gateway":"10.9.0.1/24","Pool":"10.9.0.0/24"}],"IPv6Data":[{"Gateway":"fd00:9::1/64","Pool":"fd00:9::/64"}]}`,
		`{"NetworkID":"a","EndpointID":"b","Interface":{"Address":"10.9.0.2/24","AddressIPv6":"fd00:9::2/64","MacAddress":"02:aa:bb:cc:dd:ee"},
		  "Options":{"com.docker.network.endpoint.macaddress":"Aqq7zN3u","eip.nic":"eth1","com.docker.network.portmap":[{"Proto":6,"Port":80}]}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		if req, err := decode[createNetworkRequest](strings.NewReader(body)); err == nil {
			if req.NetworkID == "" {
				t.Error("a network without an id")
			}
			if n, err := parseNetwork(req); err == nil {
				checkNetwork(t, n)
			}
		}
		if req, err := decode[createEndpointRequest](strings.NewReader(body)); err == nil {
			if req.NetworkID == "" || req.EndpointID == "" {
				t.Error("an endpoint without an id")
			}
			if len(hostVeth(req.EndpointID)) > 15 {
				t.Errorf("veth %s", hostVeth(req.EndpointID))
			}
			for k := range req.Options.eip() {
				if !model.IsEipKey(k) {
					t.Errorf("option %s", k)
				}
			}
		}
		if req, err := decode[sandboxRequest](strings.NewReader(body)); err == nil {
			_, _ = parsePortMap(req.Options[optPortMap])
		}
		for _, err := range []error{
			second(decode[networkRequest](strings.NewReader(body))),
			second(decode[endpointRequest](strings.NewReader(body))),
		} {
			if err == nil && !json.Valid([]byte(body)) {
				t.Errorf("accepted %q", body)
			}
		}
	})
}

func TestParseIPv6Network(t *testing.T) {
	parse := func(options, data string) (model.Network, error) {
		req, err := decode[createNetworkRequest](strings.NewReader(`{"NetworkID":"a","Options":{"com.docker.network.enable_ipv6":true` + options + `}` + data + `}`))
		if err != nil {
			t.Fatal(err)
		}
		return parseNetwork(req)
	}
	const (
		v4 = `,"IPv4Data":[{"Gateway":"10.9.0.1/24","Pool":"10.9.0.0/24"}]`
		v6 = `,"IPv6Data":[{"Gateway":"fd00:9::1/64","Pool":"fd00:9::/64"}]`
	)
	for name, tt := range map[string]struct{ options, data, subnets, err string }{
		"both":      {"", v4 + v6, "[{10.9.0.0/24 10.9.0.1} {fd00:9::/64 fd00:9::1}]", ""},
		"alone":     {`,"com.docker.network.enable_ipv4":false`, v6, "[{fd00:9::/64 fd00:9::1}]", ""},
		"no pool":   {"", v4, "[]", "an eipnet network needs an IPv6 subnet: Docker gave none"},
		"small MTU": {`,"com.docker.network.generic":{"com.docker.network.driver.mtu":"1279"}`, v4 + v6, "[]", "com.docker.network.driver.mtu=1279 is too small for IPv6, which needs 1280"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := parse(tt.options, tt.data)
			if got := fmt.Sprint(n.Subnets()); got != tt.subnets || err == nil && tt.err != "" || err != nil && err.Error() != tt.err {
				t.Errorf("got %s, %v; want %s, %s", got, err, tt.subnets, tt.err)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

func checkNetwork(t *testing.T, n model.Network) {
	t.Helper()
	if len(n.Bridge) > 15 || n.Bridge == "" || len(n.Subnets()) == 0 {
		t.Errorf("accepted %+v", n)
	}
	for _, s := range n.Subnets() {
		if !s.Prefix.Contains(s.Gateway) || s.Prefix.Bits() == 0 || s.Prefix != s.Prefix.Masked() {
			t.Errorf("accepted subnet %+v", s)
		}
	}
	if _, err := model.ParseNetworkOptions(n.Options); err != nil {
		t.Errorf("accepted options %v: %v", n.Options, err)
	}
}

// FuzzPortMap reads port maps: what is accepted can be published, and its order
// does not depend on Docker's.
func FuzzPortMap(f *testing.F) {
	for _, s := range []string{
		``, `null`, `[]`, `[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]`,
		`[{"Proto":17,"Port":53,"HostIP":"127.0.0.1","HostPort":5300,"HostPortEnd":5301},{"Proto":6,"Port":7000,"HostPort":0}]`,
		`[{"Proto":6,"Port":1,"HostPort":65535,"HostPortEnd":65535},{"Proto":6,"Port":1,"HostPort":65535}]`,
		`[{"Proto":132,"Port":1}]`, `[{"Proto":6,"Port":1,"HostPort":-1}]`, `[{"Proto":6,"Port":1,"HostIP":"::1%eth0"}]`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		wishes, err := parsePortMap(json.RawMessage(raw))
		if err != nil {
			return
		}
		for _, w := range wishes {
			if w.Port == 0 || w.Last < w.First || !slices.Contains([]model.Proto{model.TCP, model.UDP, model.SCTP}, w.Proto) || w.HostIP.Zone() != "" || w.HostIP.Is4In6() {
				t.Errorf("accepted %+v", w)
			}
			if p := w.publish(max(w.First, 1)); !w.grantedBy(p) {
				t.Errorf("%+v does not take %v", w, p)
			}
		}
		var bindings []portBinding
		if raw == "" || json.Unmarshal([]byte(raw), &bindings) != nil {
			return
		}
		slices.Reverse(bindings)
		reversed, err := json.Marshal(bindings)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parsePortMap(reversed); err != nil || !slices.Equal(again, wishes) {
			t.Errorf("order matters: %v, %v (%v)", wishes, again, err)
		}
	})
}
