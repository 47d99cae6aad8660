package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/test/lab"
)

// TestAddressGivenAgain: Docker gives the address and the MAC address of a
// container that is gone to another one, and eipnet cannot know: it does not
// hear from Docker, or it is not there. Whoever had them before, nothing leaves
// by a way that was not meant for the new one.
func TestAddressGivenAgain(t *testing.T) {
	r := prepare(t, lab.Config{Shape: lab.OneSubnet}, "--nics", allNICs)
	p := r.proxied()
	r.serve()
	r.createStrict("--subnet", "172.21.0.0/16")
	for _, c := range []struct {
		name  string
		first string // the pin of the first one
		leave func() (back func())
	}{
		{"pinned, docker away", "eth1", func() func() {
			p.close()
			r.eventually("eipnet to see that Docker is away", r.dockerAway)
			return func() {
				if err := p.open(); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"unpinned, docker silent", "", p.hush},
		{"pinned, daemon dead", "eth1", func() func() { r.kill(); return r.serve }},
		{"unpinned, daemon dead", "", func() func() { r.kill(); return r.serve }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.resetSniffers()
			first, second := "first", "second"
			by := map[string]string{first: c.first, second: "eth2"}
			start := func(name string) {
				args := []string{"run", "-d", "--name", name, "--network", strictNetwork, "--ip", "172.21.0.100", "--mac-address", "02:42:ac:15:00:64"}
				if by[name] != "" {
					args = append(args, "--label", "eip.nic="+by[name])
				} else {
					by[name] = "eth0"
				}
				r.docker(append(args, lab.Image, "burst", "--stay", "--name", name, fmt.Sprintf("%v:%d", lab.SiteAddr, r.portOf(by[name])))...)
			}
			start(first)
			r.reach([]string{first}, 1, by)
			back := c.leave()
			r.docker("rm", "-f", first)
			start(second)
			<-time.After(time.Second)
			for _, seen := range r.Site.Seen() {
				if name, _, _ := strings.Cut(seen.Detail, " "); name == second {
					t.Errorf("it left before eipnet could know it: %v", seen)
				}
			}
			r.straight(t)
			back()
			r.reach([]string{second}, 1, by)
			r.docker("rm", "-f", second)
			r.straight(t)
		})
	}
}
