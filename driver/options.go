package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// Keys of Docker's own, in the options of requests.
const (
	optGeneric    = "com.docker.network.generic" // the -o options of a network
	optEnableIPv4 = "com.docker.network.enable_ipv4"
	optEnableIPv6 = "com.docker.network.enable_ipv6"
	optInternal   = "com.docker.network.internal"
	optPortMap    = "com.docker.network.portmap"
)

// Keys that are accepted from `docker network create -o`, beside eip.*.
const (
	optBridge    = "com.docker.network.bridge.name"
	optICC       = "com.docker.network.bridge.enable_icc"
	optMasq      = "com.docker.network.bridge.enable_ip_masquerade"
	optBinding   = "com.docker.network.bridge.host_binding_ipv4"
	optGateMode4 = "com.docker.network.bridge.gateway_mode_ipv4"
	optGateMode6 = "com.docker.network.bridge.gateway_mode_ipv6"
	optMTU       = "com.docker.network.driver.mtu"
	optIfPrefix  = "com.docker.network.container_iface_prefix"
	optAdvertN   = "com.docker.network.advertise_addr_nmsgs" // read by libnetwork itself
	optAdvertMs  = "com.docker.network.advertise_addr_ms"    // read by libnetwork itself
)

const gateIsolated = "isolated" // a gateway mode: there is none

const acceptedNetworkKeys = "accepted: eip.nic, eip.ip, eip.public, eip.mac, eip.ip6, eip.fallback, eip.except, eip.allow, eip.lock, " +
	optBridge + ", " + optICC + ", " + optMasq + ", " + optBinding + ", " + optGateMode4 + "=nat|isolated, " + optGateMode6 + "=nat|isolated, " +
	optMTU + ", " + optIfPrefix + ", " + optAdvertN + ", " + optAdvertMs

// refusedNetworkKeys are options of Docker's bridge that have no place here, and why.
var refusedNetworkKeys = map[string]string{
	"com.docker.network.bridge.inhibit_ipv4":            "the bridge's address is the containers' way out",
	"com.docker.network.bridge.default_bridge":          "the default bridge is Docker's own",
	"com.docker.network.bridge.trusted_host_interfaces": "containers are reached by published ports only",
	"com.docker.network.host_ipv4":                      "the address to leave with is named by eip.ip",
	"com.docker.network.host_ipv6":                      "the address to leave with is named by eip.ip6",
}

// refusedAuxKeys are names of --aux-address by which Docker's bridge has
// containers leave by another router. All others only keep an address free.
var refusedAuxKeys = []string{"DefaultGatewayIPv4", "DefaultGatewayIPv6"}

// Refused is what users of Docker's bridge may say of a network and eipnet
// refuses, and why.
func Refused() map[string]string {
	out := maps.Clone(refusedNetworkKeys)
	for _, key := range refusedAuxKeys {
		out["--aux-address "+key+"=…"] = "containers leave by their bridge's address, which is --gateway"
	}
	for _, key := range []string{optGateMode4, optGateMode6} {
		for _, mode := range []string{"routed", "nat-unprotected"} {
			out[key+"="+mode] = "containers leave with a NIC's address and are reached by published ports only"
		}
	}
	return out
}

// parseNetwork turns the request into the network that it asks for. It looks at
// nothing but the request.
func parseNetwork(req createNetworkRequest) (model.Network, error) {
	n := model.Network{ID: req.NetworkID}
	generic := req.Options.strings(optGeneric)
	if err := setNetworkOptions(&n, generic); err != nil {
		return model.Network{}, err
	}
	var err error
	if n.Internal, err = req.Options.flag(optInternal, false); err != nil {
		return model.Network{}, err
	}
	v4, err := req.Options.flag(optEnableIPv4, true)
	if err != nil {
		return model.Network{}, err
	}
	v6, err := req.Options.flag(optEnableIPv6, false)
	if err != nil {
		return model.Network{}, err
	}
	if !v4 && !v6 {
		return model.Network{}, errors.New("an eipnet network needs IPv4 or IPv6: both are switched off")
	}
	if v4 {
		if n.Subnet4, n.Gateway4, err = parsePool(model.IPv4, req.IPv4Data); err != nil {
			return model.Network{}, err
		}
	}
	if v6 {
		if n.Subnet6, n.Gateway6, err = parsePool(model.IPv6, req.IPv6Data); err != nil {
			return model.Network{}, err
		}
		if n.MTU != 0 && n.MTU < 1280 {
			return model.Network{}, fmt.Errorf("%s=%d is too small for IPv6, which needs 1280", optMTU, n.MTU)
		}
	}
	if err := isolate(&n, generic); err != nil {
		return model.Network{}, err
	}
	return n, nil
}

// isolate leaves the bridge of an isolated network without an address, so that
// its containers and the host do not reach each other.
func isolate(n *model.Network, generic map[string]string) error {
	for _, mode := range []struct {
		key     string
		gateway *netip.Addr
	}{{optGateMode4, &n.Gateway4}, {optGateMode6, &n.Gateway6}} {
		switch {
		case generic[mode.key] != gateIsolated:
		case !n.Internal:
			return fmt.Errorf("%s=%s is for --internal networks only", mode.key, gateIsolated)
		default:
			*mode.gateway = netip.Addr{}
		}
	}
	return nil
}

// setNetworkOptions judges the -o options: what is not known is an error, as a
// misspelt option that is ignored would leave containers unpinned.
func setNetworkOptions(n *model.Network, generic map[string]string) error {
	n.Bridge = defaultBridge(n.ID)
	for _, key := range slices.Sorted(maps.Keys(generic)) {
		value := generic[key]
		switch {
		case model.IsEipKey(key): // all at once below
		case refusedNetworkKeys[key] != "":
			return fmt.Errorf("network option %s is not supported on eipnet networks: %s; %s", key, refusedNetworkKeys[key], acceptedNetworkKeys)
		default:
			if err := setNetworkOption(n, key, value); err != nil {
				return err
			}
		}
	}
	n.Options = model.EipOnly(generic)
	o, err := model.ParseNetworkOptions(n.Options)
	if err == nil && o.Loose {
		return fmt.Errorf("%s=false: an eipnet network is always strict", model.KeyStrict)
	}
	return err
}

// setNetworkOption judges one option of Docker's own.
func setNetworkOption(n *model.Network, key, value string) error {
	boolean := func(whenFalse *bool) error {
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%s=%q is neither true nor false", key, value)
		}
		*whenFalse = !on
		return nil
	}
	switch key {
	case optBridge:
		if !validLinkName(value, 15) {
			return fmt.Errorf("%s=%q is no interface name of 1 to 15 characters", key, value)
		}
		n.Bridge = value
	case optICC:
		return boolean(&n.NoICC)
	case optMasq:
		return boolean(&n.NoMasquerade)
	case optBinding:
		addr, err := netip.ParseAddr(value)
		if err != nil || !addr.Is4() {
			return fmt.Errorf("%s=%q is no IPv4 address", key, value)
		}
		n.HostBinding = addr
	case optGateMode4, optGateMode6:
		if value != "nat" && value != gateIsolated {
			return fmt.Errorf("%s=%s is not supported on eipnet networks, only nat and, with --internal, %s are: containers leave with a NIC's address and are reached by published ports only", key, value, gateIsolated)
		}
	case optMTU:
		mtu, err := strconv.Atoi(value)
		if err != nil || mtu < 68 || mtu > 65535 {
			return fmt.Errorf("%s=%q is no MTU of 68 to 65535", key, value)
		}
		n.MTU = mtu
	case optIfPrefix:
		if !validLinkName(value, 12) {
			return fmt.Errorf("%s=%q is no interface name prefix of 1 to 12 characters", key, value)
		}
		n.IfPrefix = value
	case optAdvertN, optAdvertMs:
	default:
		return fmt.Errorf("unknown network option %s; %s", key, acceptedNetworkKeys)
	}
	return nil
}

// parsePool reads the one pool of a family. Docker gives the gateway with the
// length of the pool's prefix.
func parsePool(f model.Family, data []ipamData) (subnet netip.Prefix, gateway netip.Addr, err error) {
	fail := func(format string, args ...any) (netip.Prefix, netip.Addr, error) {
		return netip.Prefix{}, netip.Addr{}, fmt.Errorf(format, args...)
	}
	if len(data) == 0 {
		return fail("an eipnet network needs an %v subnet: Docker gave none", f)
	}
	if len(data) > 1 {
		return fail("an eipnet network has one %v subnet, not %d: make a network for each", f, len(data))
	}
	pool, err := netip.ParsePrefix(data[0].Pool)
	if err != nil || model.FamilyOf(pool.Addr()) != f {
		return fail("reading the %v subnet: %q is none", f, data[0].Pool)
	}
	if pool.Bits() == 0 {
		return fail("an eipnet network needs an %v subnet, not %v: the null IPAM driver gives out no addresses, use the default one", f, pool)
	}
	for _, key := range refusedAuxKeys {
		if _, ok := data[0].AuxAddresses[key]; ok {
			return fail("--aux-address %s is not supported on eipnet networks: containers leave by their bridge's address, which is --gateway", key)
		}
	}
	if data[0].Gateway == "" {
		return fail("an eipnet network needs an %v gateway, as that is its bridge's address: Docker gave none for %v", f, pool)
	}
	gateway, err = parseAddress(data[0].Gateway)
	if err != nil {
		return fail("reading the %v gateway: %w", f, err)
	}
	if !pool.Contains(gateway) {
		return fail("the gateway %v is not in the subnet %v", gateway, pool)
	}
	return pool.Masked(), gateway, nil
}

// parseAddress reads an address with or without a prefix length.
func parseAddress(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if strings.Contains(s, "/") {
		var p netip.Prefix
		p, err = netip.ParsePrefix(s)
		addr = p.Addr()
	}
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%q is no address", s)
	}
	return addr, nil
}

func validLinkName(s string, most int) bool { return len(s) <= most && model.IsLinkName(s) }

func defaultBridge(networkID string) string { return "eip-" + prefix(networkID) }

// prefix cuts an id to what fits behind four characters in a link name.
func prefix(id string) string { return id[:min(len(id), 11)] }

// strings returns an option that is a map of strings. Values that are none are
// rendered; an option of another shape, or none, is an empty map.
func (o rawOptions) strings(key string) map[string]string {
	var raw map[string]json.RawMessage
	if json.Unmarshal(o[key], &raw) != nil {
		return nil
	}
	out := make(map[string]string, len(raw))
	for k, v := range raw {
		out[k] = text(v)
	}
	return out
}

// flag returns an option that is a boolean, or one that is written as text.
func (o rawOptions) flag(key string, absent bool) (bool, error) {
	raw, ok := o[key]
	if !ok || string(raw) == "null" {
		return absent, nil
	}
	b, err := strconv.ParseBool(text(raw))
	if err != nil {
		return false, fmt.Errorf("%s=%s is neither true nor false", key, raw)
	}
	return b, nil
}

// eip returns the eip.* options of an endpoint.
func (o rawOptions) eip() map[string]string {
	all := make(map[string]string)
	for k, v := range o {
		if model.IsEipKey(k) {
			all[k] = text(v)
		}
	}
	return model.EipOnly(all)
}

// text is a JSON string's content, or the JSON itself.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return string(raw)
	}
	return s
}

// checkSelector refuses a selector that never named a NIC of this host, with the
// list of those that are there. A NIC that was known and is gone is no error:
// its containers are held until it is back. Nor is anything one while dockerd
// boots and NICs may still be on their way.
func (d *Driver) checkSelector(ctx context.Context, s model.Selector) error {
	if s.IsZero() || !d.labels.Up() {
		return nil
	}
	if s.Kind == model.ByNIC && d.store.NICKnown(s.Name) {
		return nil
	}
	if _, ok := d.resolved.Load(s); ok {
		return nil
	}
	host, err := d.core.Host(ctx)
	if err != nil {
		return fmt.Errorf("looking for the NIC of %v: %w", s, err)
	}
	if _, _, err := host.Resolve(s, d.core.EIPs()); err != nil {
		return err
	}
	d.resolved.Store(s, struct{}{})
	return nil
}

// macOf derives a container's MAC from its address, as Docker did up to 27: the
// address comes back under the same MAC when the container is restarted (under
// a new endpoint id), so that its neighbours' caches stay right. IPv6-only
// endpoints get one in which the address' last bytes are folded.
func macOf(e model.Endpoint) string {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	if e.Addr4.IsValid() {
		a := e.Addr4.As4()
		copy(mac[2:], a[:])
		return mac.String()
	}
	a := e.Addr6.As16()
	for i, b := range a {
		mac[2+i%4] ^= b
	}
	return mac.String()
}
