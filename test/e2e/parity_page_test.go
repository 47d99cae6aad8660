package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/test/lab"
)

// question is a row with the addresses to ask, in each family that it has.
type question struct {
	row     row
	network string
	to      map[model.Family]netip.AddrPort
}

// What is asked.
const (
	toAll       = "`-p 8090:8081`, at eth0's address"
	toAllEth1   = "`-p 8090:8081`, at eth1's address"
	toAllBridge = "`-p 8090:8081`, at its bridge's address"
	toAllOwn    = "`-p 8090:8081`, at the bridge's address of who asks"
	toAllUDP    = "`-p 8090:8080/udp`, at eth0's address"
	toOne       = "`-p ETH1:8091:8081`, at eth1's address"
	toOneElse   = "`-p ETH1:8091:8081`, at eth0's address"
	toAny4      = "`-p 0.0.0.0:8092:8081`, at eth0's address"
	toPinned    = "pinned to eth1, `-p 8093:8081`, at eth1's address"
	toLoop      = "`-p 8090:8081`, at the host's loopback"
	toLoop6     = "`-p [::1]:8094:8081`, at the host's loopback"
	toFour      = "of IPv4 alone, `-p 8095:8081`, at eth0's address"
	toFourOwn   = "of IPv4 alone, `-p 8095:8081`, at the bridge's address of who asks"
	toFourUDP   = "of IPv4 alone, `-p 8095:8080/udp`, at eth0's address"
	toFourPin   = "of IPv4 alone, pinned to eth1, `-p 8096:8081`, at eth1's address"
	toPinned0   = "pinned to eth1, `-p 8093:8081`, at eth0's address"
	toDirect    = "its own address, a published port"
	toClosed    = "its own address, a port that is not published"
	toUnmapped  = "a NIC's address, a port that is not published"
	toInner     = "a container of an `--internal` network, its own address"
	toIsolated  = "a container of an isolated `--internal` network, its own address"
	toSiteTCP   = "the Internet, TCP"
	toSiteUDP   = "the Internet, UDP"
	toHost      = "a service of the host, at eth0's address"
)

// differences are the rows in which the two sides differ, and why.
var differences = func() map[row]string {
	out := make(map[row]string)
	for _, d := range []struct {
		why      string
		to, from []string
	}{
		{
			"Docker answers by the host's default route: by eth0, with eth1's address, which a cloud drops. eipnet answers by the NIC that was asked.",
			[]string{toAllEth1, toOne},
			[]string{fromSite},
		},
		{
			"Without a host address in `-p` a pinned container is published on its NIC's address only, so that another NIC has the port free; " +
				"`-p 0.0.0.0:8093:8081` is on all of them. On a network of Docker's own the ports are Docker's.",
			[]string{toPinned0},
			[]string{fromSite, fromHost, fromSame, fromOther},
		},
		{
			"Docker gives a container that calls a published port of another network the bridge's address. " +
				"eipnet does so between its own networks; to a network of Docker's it leaves the container's own.",
			[]string{toAll, toAllEth1, toAllBridge, toAllUDP, toOne},
			[]string{fromForeign},
		},
	} {
		for _, to := range d.to {
			for _, from := range d.from {
				out[row{from, to}] = d.why
			}
		}
	}
	return out
}()

// questions lists the cases in the order of the page.
func (s *side) questions() []question {
	var out []question
	add := func(network, to string, v4, v6 netip.Addr, port int, from ...string) {
		for _, f := range from {
			q := question{row{f, to}, network, map[model.Family]netip.AddrPort{}}
			for _, a := range []netip.Addr{v4, v6} {
				if a.IsValid() {
					q.to[model.FamilyOf(a)] = netip.AddrPortFrom(a, uint16(port))
				}
			}
			out = append(out, q)
		}
	}
	// nic is add for a NIC's address, which the site knows as an EIP.
	nic := func(network, to, name string, port int, from ...string) {
		for _, f := range from {
			v4 := s.Addr(name)
			if f == fromSite {
				v4 = s.EIP(name)
			}
			add(network, to, v4, s.Addr6(name), port, f)
		}
	}
	inside := []string{fromSelf, fromSame, fromOther, fromForeign}
	everywhere := append([]string{fromSite, fromHost}, inside...)
	const v4, v6 = model.IPv4, model.IPv6

	nic("tcp", toAll, "eth0", s.port, everywhere...)
	nic("tcp", toAllEth1, "eth1", s.port, everywhere...)
	add("tcp", toAllBridge, s.addr(v4, "1", 1), s.addr(v6, "1", 1), s.port, append([]string{fromHost}, inside...)...)
	add("tcp", toAllOwn, s.addr(v4, "3", 1), s.addr(v6, "3", 1), s.port, fromInner)
	add("tcp", toAllOwn, s.foreign.addr(v4, "3", 1), s.foreign.addr(v6, "3", 1), s.port, fromInOther)
	nic("udp", toAllUDP, "eth0", s.port, everywhere...)
	nic("tcp", toOne, "eth1", s.port+1, everywhere...)
	nic("tcp", toOneElse, "eth0", s.port+1, fromSite, fromHost, fromSame)
	nic("tcp", toAny4, "eth0", s.port+2, fromSite, fromHost, fromSame)
	add("tcp", toLoop, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), s.port, fromHost)
	add("tcp", toLoop6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), s.port+4, fromHost)
	nic("tcp", toFour, "eth0", s.port+5, fromSite, fromHost, fromSame, fromOther)
	add("tcp", toFourOwn, s.addr(v4, "3", 1), s.addr(v6, "3", 1), s.port+5, fromInner)
	nic("udp", toFourUDP, "eth0", s.port+5, fromSite, fromHost, fromSame)
	nic("tcp", toFourPin, "eth1", s.port+6, fromSite, fromHost, fromSame)
	nic("tcp", toPinned, "eth1", s.port+3, fromSite, fromHost, fromSame, fromOther)
	nic("tcp", toPinned0, "eth0", s.port+3, fromSite, fromHost, fromSame, fromOther)
	add("tcp", toDirect, s.addr(v4, "1", 10), s.addr(v6, "1", 10), 8081, everywhere...)
	add("udp", toClosed, s.addr(v4, "1", 11), s.addr(v6, "1", 11), 8080, fromSite, fromHost, fromSame, fromOther, fromForeign)
	add("tcp", toInner, s.addr(v4, "3", 10), s.addr(v6, "3", 10), 8081, fromSite, fromHost, fromInPeer, fromSame, fromOther, fromForeign)
	add("tcp", toIsolated, s.addr(v4, "4", 10), s.addr(v6, "4", 10), 8081, fromSite, fromHost, fromIsoPeer, fromSame, fromOther)
	nic("tcp", toUnmapped, "eth0", 8081, fromSite, fromHost, fromSame)
	add("tcp", toSiteTCP, lab.SiteAddr, lab.SiteAddr6, 7, fromSame, fromPinned, fromInner)
	add("udp", toSiteUDP, lab.SiteAddr, lab.SiteAddr6, 7, fromSame, fromPinned, fromInner)
	add("tcp", toHost, s.Addr("eth0"), s.Addr6("eth0"), 7, fromSame, fromPinned, fromInner)
	return out
}

const parityIntro = `# Docker's bridge and eipnet

What a user who swaps ` + "`-d bridge` for `-d eipnet`" + ` has to expect. This page is not written by hand: ` + "`TestBridgeParity`" + ` starts the same
containers on both in one lab (engine 28.5, networks with IPv4 and IPv6), asks from everywhere, and fails when it sees something else, or a difference for which no
reason is given. ` + "`make golden`" + ` rewrites it.

*Isolated* are networks with ` + "`-o com.docker.network.bridge.gateway_mode_ipv4=isolated`" + ` and the same for IPv6: their bridge has no address.

A cell says as whom the asker is seen: *as itself* (with its own address), *as the bridge* (with the bridge's address), *as eth0* (with that NIC's, which outside is its EIP); *no*: it
does not get there. Where both drivers and both families agree there is one word for all.

`

// parityPage renders the table.
func parityPage(rows []row, bridge, eipnet map[row]seen) string {
	var b strings.Builder
	b.WriteString(parityIntro)
	b.WriteString("| To | From | `bridge` | `eipnet` |\n|---|---|---|---|\n")
	var notes []string
	for _, r := range rows {
		note := ""
		if why := differences[r]; why != "" {
			at := 0
			for i, n := range notes {
				if n == why {
					at = i + 1
				}
			}
			if at == 0 {
				notes = append(notes, why)
				at = len(notes)
			}
			note = fmt.Sprintf(" [%d](#differences)", at)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s%s |\n", r.to, r.from, bridge[r].cell(), eipnet[r].cell(), note)
	}
	b.WriteString("\n## Differences\n\n")
	for i, n := range notes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, n)
	}
	b.WriteString(parityElsewhere)
	refused := driver.Refused()
	for _, key := range slices.Sorted(maps.Keys(refused)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", key, refused[key])
	}
	b.WriteString(parityOutro)
	return b.String()
}

// parityElsewhere are differences that no row shows, and the head of the table of
// what is refused.
const parityElsewhere = `
## Not in the table

- What comes to ::1, or over IPv6 to a container of IPv4 alone, NAT cannot take there. Docker has a program for it, docker-proxy, one for each port; with eipnet the daemon does it itself, for TCP and
  UDP: the container sees the bridge's address, ` + "`iptables`' DOCKER-USER" + ` has no say in it, INPUT has, and such connections end when the daemon does. A port has room for 1,024 of them and for 256 UDP clients at a time.

And of ` + "`docker network create`" + ` an eipnet network refuses, with these reasons, what Docker's bridge has:

| Option | Why |
|---|---|
`

const parityOutro = `
` + "`docker ps`" + ` shows no ports for networks of a plugin, on any engine; ` + "`eipnet status`" + ` does. What else is missing is in the
[README](../README.md#limits-as-of-now).

The test also sees to it that Docker's own network is the same with eipnet on the host as without, that all of this holds where the policy of iptables' FORWARD is DROP, and that
rules which the user has in DOCKER-USER go first. After ` + "`iptables -F` and after `nft flush ruleset`" + ` eipnet's side is as before by itself.
`

func (s seen) cell() string {
	switch {
	case s.v4 == s.v6 || s.v6 == "":
		return s.v4
	case s.v4 == "":
		return "IPv6: " + s.v6
	}
	return "IPv4: " + s.v4 + ", IPv6: " + s.v6
}

func readPage(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func writePage(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// ipCommand runs the machine's ip in the thread's network namespace.
func ipCommand(t *testing.T, args ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := strings.Fields(strings.Join(args, " "))
	if out, err := exec.CommandContext(ctx, "ip", all...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(all, " "), err, out)
	}
	return nil
}
