package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// fabricRules renders the cloud's two duties, here for one NIC:
//
//	table netdev cloud {
//		counter eth1-ip4 { }
//		chain eth1 {
//			type filter hook ingress device "port-eth1" priority 0; policy accept;
//			ether saddr != 02:31:00:00:00:0e counter name "eth1-mac" drop
//			arp saddr ether != 02:31:00:00:00:0e counter name "eth1-arp" drop
//			arp saddr ip != { 0.0.0.0, 172.31.0.14 } counter name "eth1-arp" drop
//			ip saddr != { 172.31.0.14 } counter name "eth1-ip4" drop
//			ip6 saddr != { ::, fe80::/10, 2001:db8:31::14 } counter name "eth1-ip6" drop
//		}
//	}
//	table ip cloud {
//		chain pre { type nat hook prerouting priority dstnat; dnat to ip daddr map { 119.26.38.75 : 172.31.0.14 } }
//		chain post {
//			type nat hook postrouting priority srcnat;
//			oifname "site" snat to ip saddr map { 172.31.0.14 : 119.26.38.75 }
//			ct status dnat snat to ip saddr map { 172.31.0.14 : 119.26.38.75 }
//		}
//		chain leave { type filter hook forward priority 0; oifname "site" ct state invalid counter name "invalid" drop }
//	}
func (l *Lab) fabricRules() string {
	var counters, chains strings.Builder
	var in, out []string
	for _, n := range l.nics {
		for _, kind := range dropKinds {
			fmt.Fprintf(&counters, "\tcounter %s-%s { }\n", n.Name, kind)
		}
		v4, v6 := joinAddrs(n.addrs(false)), joinAddrs(n.addrs(true))
		fmt.Fprintf(&chains, "\tchain %s {\n\t\ttype filter hook ingress device %q priority 0; policy accept;\n", n.Name, portOf(n.Name))
		rule := func(match, kind string) {
			fmt.Fprintf(&chains, "\t\t%s counter name \"%s-%s\" drop\n", match, n.Name, kind)
		}
		rule("ether saddr != "+n.MAC.String(), "mac")
		rule("arp saddr ether != "+n.MAC.String(), "arp")
		rule("arp saddr ip != { 0.0.0.0, "+v4+" }", "arp")
		rule("ip saddr != { "+v4+" }", "ip4")
		rule("ip6 saddr != { ::, fe80::/10, "+v6+" }", "ip6")
		chains.WriteString("\t}\n")
		in = append(in, fmt.Sprintf("%s : %s", n.EIP, n.Addr.Addr()))
		out = append(out, fmt.Sprintf("%s : %s", n.Addr.Addr(), n.EIP))
	}
	return fmt.Sprintf(`table netdev cloud {
%s%s}
table ip cloud {
	counter invalid { }
	chain pre {
		type nat hook prerouting priority dstnat; policy accept;
		dnat to ip daddr map { %s }
	}
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname %q snat to ip saddr map { %s }
		ct status dnat snat to ip saddr map { %s }
	}
	chain leave {
		type filter hook forward priority 0; policy accept;
		oifname %q ct state invalid counter name "invalid" drop
	}
}
`, counters.String(), chains.String(), strings.Join(in, ", "), sitePort, strings.Join(out, ", "), strings.Join(out, ", "), sitePort)
}

func joinAddrs(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, ", ")
}

// nft loads rules into the fabric.
func (l *Lab) nft(ctx context.Context, rules string) error {
	return l.fabric.Do(func() error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("loading the fabric's rules: %w: %s", err, out)
		}
		return nil
	})
}

var dropKinds = []string{"mac", "arp", "ip4", "ip6"}

// Drops counts the packets of one NIC that the fabric's source check dropped, by reason.
type Drops struct{ MAC, ARP, IP4, IP6 uint64 }

// Total adds all reasons.
func (d Drops) Total() uint64 { return d.MAC + d.ARP + d.IP4 + d.IP6 }

// Drops reads the fabric's counters of a NIC's port.
func (l *Lab) Drops(ctx context.Context, nic string) (Drops, error) {
	var out []byte
	err := l.fabric.Do(func() (err error) {
		out, err = exec.CommandContext(ctx, "nft", "-j", "list", "counters", "table", "netdev", "cloud").Output()
		return err
	})
	if err != nil {
		return Drops{}, fmt.Errorf("listing the fabric's counters: %w", err)
	}
	var list struct {
		Nftables []struct {
			Counter *struct {
				Name    string
				Packets uint64
			}
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return Drops{}, fmt.Errorf("reading the fabric's counters: %w", err)
	}
	byName := map[string]uint64{}
	for _, o := range list.Nftables {
		if o.Counter != nil {
			byName[o.Counter.Name] = o.Counter.Packets
		}
	}
	if _, ok := byName[nic+"-"+dropKinds[0]]; !ok {
		return Drops{}, fmt.Errorf("the fabric has no port for NIC %q", nic)
	}
	return Drops{byName[nic+"-mac"], byName[nic+"-arp"], byName[nic+"-ip4"], byName[nic+"-ip6"]}, nil
}

// String is for test failures.
func (d Drops) String() string {
	return fmt.Sprintf("mac %d, arp %d, ip4 %d, ip6 %d", d.MAC, d.ARP, d.IP4, d.IP6)
}
