package host

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/eipnet/eipnet/internal/model"
)

// leaseRouter returns the router that the DHCP server named to this NIC: what
// systemd-networkd holds now, else the newest dhclient lease of its address.
func (h *Host) leaseRouter(n model.NIC) netip.Addr {
	networkd := filepath.Join(h.o.Root, "run/systemd/netif/leases", strconv.Itoa(n.Index))
	if text, err := os.ReadFile(networkd); err == nil {
		if g := networkdRouter(string(text)); g.IsValid() {
			return g
		}
	}
	var newest time.Time
	var router netip.Addr
	for _, pattern := range []string{"*" + n.Name + "*.lease", "*" + n.Name + "*.leases"} {
		files, err := filepath.Glob(filepath.Join(h.o.Root, "var/lib/dhcp", pattern))
		if err != nil {
			continue
		}
		for _, f := range files {
			text, changed := readLease(f)
			if g := dhclientRouter(text, n); g.IsValid() && changed.After(newest) {
				newest, router = changed, g
			}
		}
	}
	return router
}

func readLease(name string) (string, time.Time) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", time.Time{}
	}
	var info fs.FileInfo
	if info, err = os.Stat(name); err != nil {
		return "", time.Time{}
	}
	return string(text), info.ModTime()
}

// networkdRouter reads `ROUTER=172.31.0.1 172.31.0.2`.
func networkdRouter(text string) netip.Addr {
	for line := range strings.Lines(text) {
		if list, ok := strings.CutPrefix(strings.TrimSpace(line), "ROUTER="); ok {
			return firstRouter(list)
		}
	}
	return netip.Addr{}
}

// dhclientRouter reads the last lease of the file that is for this NIC and one of its addresses:
//
//	lease {
//	  interface "eth1";
//	  fixed-address 172.31.0.14;
//	  option routers 172.31.0.1;
//	}
func dhclientRouter(text string, n model.NIC) netip.Addr {
	var router, found netip.Addr
	var mine, held bool
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(strings.TrimSpace(line), ";")
		switch field, value, _ := strings.Cut(line, " "); {
		case field == "lease":
			router, mine, held = netip.Addr{}, true, false
		case field == "interface":
			mine = strings.Trim(value, `"`) == n.Name
		case field == "fixed-address":
			a, err := netip.ParseAddr(value)
			held = err == nil && n.Has(a)
		case strings.HasPrefix(line, "option routers "):
			router = firstRouter(strings.TrimPrefix(line, "option routers "))
		case line == "}" && mine && held && router.IsValid():
			found = router
		}
	}
	return found
}

func firstRouter(list string) netip.Addr {
	for _, s := range strings.FieldsFunc(list, func(r rune) bool { return r == ' ' || r == ',' }) {
		if a, err := netip.ParseAddr(s); err == nil && a.Is4() && !a.IsUnspecified() {
			return a
		}
	}
	return netip.Addr{}
}
