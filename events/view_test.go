package events

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

// TestStockNetworks: the options are told here as no engine tells them.
func TestStockNetworks(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{
		"Name": "web", "Driver": "bridge", "Labels": object{"eip.nic": "eth2", "other": "x"}, "Internal": true,
		"IPAM": object{"Config": []object{{"Subnet": "172.20.0.0/16", "Gateway": "172.20.0.1"}, {"Subnet": "fd00:20::/64", "Gateway": "fd00:20::1"}}},
	})
	d.addNetwork(net2, object{ // as 20.10 tells it: without gateway
		"Name": "bridge", "Driver": "bridge", "Options": object{"com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.name": "docker0"},
		"IPAM": object{"Config": []object{{"Subnet": "172.17.0.0/16"}}},
	})
	d.addNetwork("vlan", object{"Name": "vlan", "Driver": "macvlan"})
	d.addContainer(con1, "app", pinned)
	d.addContainer(con2, "plain", nil)
	d.attachWith(net1, con1, object{
		"EndpointID": end1, "Name": "app", "MacAddress": "02:42:ac:14:00:02", "IPv4Address": "172.20.0.2/16", "IPv6Address": "fd00:20::2/64",
		"options": object{"eip.nic": "eth3", "com.example": "x"},
	})
	d.attach(net2, con2, end2, "plain")
	d.attach("vlan", con2, "end3", "plain")
	d.attachWith(net2, "ep-end4", object{"EndpointID": "end4", "Name": "plain", "MacAddress": "", "IPv4Address": "", "IPv6Address": ""})
	w := run(t, d.host())
	w.untilUp()
	v := w.View()
	stock := []model.Network{
		{
			ID: net1, Name: "web", Stock: true, Bridge: "br-111111111111", Internal: true, Options: map[string]string{"eip.nic": "eth2"},
			Subnet4: netip.MustParsePrefix("172.20.0.0/16"), Gateway4: netip.MustParseAddr("172.20.0.1"),
			Subnet6: netip.MustParsePrefix("fd00:20::/64"), Gateway6: netip.MustParseAddr("fd00:20::1"),
		},
		{ID: net2, Name: "bridge", Stock: true, Bridge: "docker0", Subnet4: netip.MustParsePrefix("172.17.0.0/16")},
	}
	if diff := cmp.Diff(stock, v.Stock, netips); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	endpoints := []model.Endpoint{
		{
			ID: end1, NetworkID: net1, Phase: model.Joined, MAC: "02:42:ac:14:00:02", Options: map[string]string{"eip.nic": "eth3"},
			Addr4: netip.MustParseAddr("172.20.0.2"), Addr6: netip.MustParseAddr("fd00:20::2"),
			Container: model.Container{Known: true, ID: con1, Name: "app", Labels: pinned},
		},
		{ID: end2, NetworkID: net2, Phase: model.Joined, Addr4: netip.MustParseAddr("172.19.0.2"), Container: model.Container{Known: true, ID: con2, Name: "plain"}},
	}
	if diff := cmp.Diff(endpoints, v.Endpoints, netips); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(endpoints[0].Container, v.Containers[end1]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(v.Containers) != 4 {
		t.Errorf("%d endpoints have containers: %v", len(v.Containers), v.Containers)
	}
}

// TestGatewayWithLength is an engine up to 28.0.1 with an IPv6 network that was
// made without a subnet.
func TestGatewayWithLength(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{
		"Name": "six", "Driver": "bridge",
		"IPAM": object{"Config": []object{{"Subnet": "fdcf:eadc:be2c::/64", "Gateway": "fdcf:eadc:be2c::1/64"}}},
	})
	w := run(t, d.host())
	w.untilUp()
	if got := w.View().Stock[0].Gateway6; got != netip.MustParseAddr("fdcf:eadc:be2c::1") {
		t.Errorf("gateway %v", got)
	}
}

// TestSwarmNetwork: a swarm's manager lists a node-local network without what the node made of it.
func TestSwarmNetwork(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{
		"Name": "eip", "Driver": "bridge", "Options": object{"com.docker.network.bridge.name": "br-swarm"},
		"IPAM": object{"Config": []object{{"Subnet": "172.20.0.0/16", "Gateway": "172.20.0.1"}}},
	})
	d.change(func() {
		d.swarm = map[string]object{net1: {"Id": net1, "Name": "eip", "Driver": "bridge", "Scope": "swarm"}}
	})
	w := run(t, d.host())
	w.untilUp()
	got := w.View().Stock
	if len(got) != 1 || got[0].Bridge != "br-swarm" || got[0].Subnet4 != netip.MustParsePrefix("172.20.0.0/16") {
		t.Errorf("networks %+v", got)
	}
}

func TestEndpointOptions(t *testing.T) {
	n := Network{ID: net1, Name: "web", Driver: "bridge"}
	mine := map[string]string{"eip.nic": "eth1"}
	for _, test := range []struct {
		name     string
		networks map[string]membership
		want     map[string]string
	}{
		{"by id", map[string]membership{"web": {}, "other": {networkID: net1, options: mine}}, mine},
		{"by name, never started", map[string]membership{"web": {options: mine}}, mine},
		{"network made again", map[string]membership{"web": {networkID: net2, options: mine}}, mine},
		{"run with the id", map[string]membership{net1: {options: mine}}, mine},
		{"run with the short id", map[string]membership{net1[:12]: {options: mine}}, mine},
		{"none given", map[string]membership{"web": {networkID: net1}}, nil},
		{"not told yet", map[string]membership{"other": {networkID: net2, options: mine}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, listed{networks: test.networks}.options(n)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestStockNetworkFails: endpoints that Docker cannot tell of stay.
func TestStockNetworkFails(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	d.addContainer(con1, "app", pinned)
	d.attach(net1, con1, end1, "app")
	w := run(t, d.host())
	w.untilUp()
	want := w.View()
	d.change(func() { d.failing["/networks/"+net1] = 500 })
	d.emit("network", "create", net2, nil)
	w.until("a list", func() bool { return w.View().Networks[net1].Unlisted })
	if diff := cmp.Diff(want.Endpoints, w.View().Endpoints, netips); diff != "" || len(want.Endpoints) != 1 {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.Containers, w.View().Containers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStrays(t *testing.T) {
	d := newDocker(t)
	d.addNetwork("host", object{"Name": "host", "Driver": "host"})
	d.addNetwork(net1, object{"Name": "web", "Driver": "bridge"})
	d.change(func() { d.images["sha256:labelled"] = object{"eip.nic": "eth1"} })
	for id, c := range map[string]struct {
		mode   string
		labels map[string]string
		change object
	}{
		"a0-host":        {mode: "host", labels: pinned},
		"b0-none":        {mode: "none", labels: pinned},
		"c0-by-id":       {mode: "container:" + con1, labels: pinned},
		"d0-by-name":     {mode: "container:other", labels: pinned},
		"e0-exited":      {mode: "host", labels: pinned, change: object{"State": "exited"}},
		"f0-unlabelled":  {mode: "host"},
		"g0-bridge":      {mode: "bridge", labels: pinned},
		"h0-default":     {mode: "default", labels: pinned},
		"i0-of-image":    {mode: "host", labels: pinned, change: object{"ImageID": "sha256:labelled"}},
		"j0-image-gone":  {mode: "host", labels: pinned, change: object{"ImageID": "sha256:gone"}},
		"k0-connected":   {mode: "none", labels: pinned},
		"l0-running":     {mode: "host", labels: pinned, change: object{"State": "running"}},
		con1:             {mode: "bridge", change: object{"Names": []string{"/other"}}},
		"m0-of-nobody":   {mode: "container:gone", labels: pinned},
		"n0-user-define": {mode: "web", labels: pinned},
	} {
		d.addContainer(id, id, c.labels)
		d.set(id, "HostConfig", object{"NetworkMode": c.mode})
		for k, v := range c.change {
			d.set(id, k, v)
		}
	}
	d.attach(net1, "k0-connected", end1, "k0-connected")
	w := run(t, d.host())
	w.untilUp()
	var got []string
	for _, s := range w.View().Strays {
		got = append(got, strings.Join([]string{s.Container.ID, s.Mode, s.Container.Labels["eip.nic"]}, " "))
	}
	want := []string{
		"a0-host host eth1", "b0-none none eth1", "c0-by-id container:" + con1 + " eth1", "d0-by-name container:" + con1 + " eth1",
		"j0-image-gone host ", "l0-running host eth1", "m0-of-nobody container:gone eth1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
