package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/reconcile"
	"github.com/eipnet/eipnet/test/lab"
)

// What ufw and firewalld write, as their programs do it, which need Python and
// D-Bus and are not in the lab. ufw restores its chains beside those of others
// and sets the policies; with MANAGE_BUILTINS=yes it flushes all others first.
// firewalld has a table of its own that it replaces in one transaction, and
// where somebody gave it rules for iptables, as Docker does, it empties
// iptables' tables behind a policy of DROP.
const (
	ufwEnable = `for t in iptables ip6tables; do
$t-restore -n <<EOF
*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
:ufw-before-input -
:ufw-before-forward -
:ufw-reject-forward -
-A INPUT -j ufw-before-input
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -p icmp -j ACCEPT
-A ufw-before-input -p ipv6-icmp -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
EOF
done
`
	ufwDisable = `for t in iptables ip6tables; do
$t-restore -n <<EOF
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
-D INPUT -j ufw-before-input
-D FORWARD -j ufw-before-forward
-D FORWARD -j ufw-reject-forward
-F ufw-before-input
-F ufw-before-forward
-F ufw-reject-forward
-X ufw-before-input
-X ufw-before-forward
-X ufw-reject-forward
COMMIT
EOF
done
`
	ufwFlush       = "for t in iptables ip6tables; do $t -F; $t -X; done\n"
	firewalldTable = `nft -f - <<EOF
add table inet firewalld
delete table inet firewalld
table inet firewalld {
	chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		iifname "lo" accept
		meta l4proto { icmp, ipv6-icmp } accept
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname { "lo", ZONED } accept
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
}
EOF
`
	firewalldReload = `for t in iptables ip6tables; do
for chain in INPUT FORWARD OUTPUT; do $t -P $chain DROP; done
for table in raw mangle nat filter; do $t -t $table -F; $t -t $table -X; done
for chain in INPUT FORWARD OUTPUT; do $t -P $chain ACCEPT; done
done
`
)

// TestFirewalls: whatever ufw and firewalld do to the host's rules, pins and
// ports work again by themselves, and nothing leaves wrongly meanwhile. Of
// firewalld's zones a bridge has to be told by its user: until then what its
// containers begin is refused, and what is published answers.
func TestFirewalls(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "pinned", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.run(t, "free", "-p", "8091:8080")
	r.docker("exec", "-d", "pinned", "/app", "stream", lab.SiteAddr.String()+":7")
	zoned := strings.NewReplacer("ZONED", `"`+bridge+`"`)
	for _, step := range []struct {
		name, script string
		refused      bool // what containers begin
	}{
		{"before", "true", false},
		{"ufw enable", ufwEnable, false},
		{"ufw reload", ufwDisable + ufwEnable, false},
		{"ufw disable", ufwDisable, false},
		{"ufw enable, MANAGE_BUILTINS=yes", ufwFlush + ufwEnable, false},
		{"ufw reload, MANAGE_BUILTINS=yes", ufwFlush + ufwEnable, false},
		{"ufw disable, MANAGE_BUILTINS=yes", ufwDisable + ufwFlush, false},
		{"firewalld starts, the bridge in no zone", strings.Replace(firewalldTable, "ZONED", `"virbr0"`, 1), true},
		{"firewall-cmd --zone=trusted --add-interface", zoned.Replace(firewalldTable), false},
		{"firewall-cmd --reload", zoned.Replace(firewalldReload + firewalldTable), false},
		{"firewalld stops", "nft delete table inet firewalld", false},
	} {
		t.Run(step.name, func(t *testing.T) {
			r.resetSniffers()
			r.on("sh", "-ec", step.script)
			r.within(reconcile.MaxInterval+patience, "everything to work again", func() error { return r.worksBehind(t, step.refused) })
			r.clean()
		})
	}
}

// worksBehind asks for what both containers do.
func (r *rig) worksBehind(t *testing.T, refused bool) error {
	t.Helper()
	for name, port := range map[string]int{"pinned": 8090, "free": 8091} {
		got, err := r.SiteGet(t.Context(), r.url("eth1", port)+"hello")
		if err == nil && got != "hello" {
			err = errors.New("it answered " + got)
		}
		if err != nil {
			return fmt.Errorf("the port of %s: %w", name, err)
		}
	}
	for name, nic := range map[string]string{"pinned": "eth1", "free": "eth0"} {
		got, err := r.exec(name, "get", siteIP)
		switch want := r.EIP(nic).String(); {
		case refused && err == nil:
			return fmt.Errorf("%s left as %s, and should be refused", name, got)
		case !refused && err != nil:
			return fmt.Errorf("%s does not leave: %w", name, err)
		case !refused && got != want:
			return fmt.Errorf("%s left as %s, want %s", name, got, want)
		}
	}
	return nil
}
