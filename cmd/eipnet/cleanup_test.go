package main

import (
	"bytes"
	"errors"
	"testing"
)

func TestDryRun(t *testing.T) {
	for _, tt := range []struct {
		items   []string
		unknown []string
		running error
		used    []string
		want    string
	}{
		{want: "nothing of eipnet is there\n"},
		{
			items:   []string{"link eipnull0", "group 45 of eth1", "sysctl net/ipv4/ip_forward=1 (before: 0)"},
			running: errors.New("the daemon runs (process 7)"), used: []string{"network eip", "container web"},
			want: "would remove link eipnull0\nwould put back group 45 of eth1\nwould put back sysctl net/ipv4/ip_forward=1 (before: 0)\n" +
				"# cleanup would refuse: the daemon runs (process 7)\n" +
				"# cleanup would refuse without --force, as these are in use: network eip, container web\n",
		},
		{
			items: []string{"link eipnull0"}, unknown: []string{"net/ipv4/conf/eth1/rp_filter=2", "net/ipv4/ip_forward=1"},
			want: "would remove link eipnull0\n# what the sysctls were before is not known, as the state file is lost; all else of eipnet is removed, and these, " +
				"which have the values that eipnet gives them, stay: net/ipv4/conf/eth1/rp_filter=2, net/ipv4/ip_forward=1; put back by hand what was otherwise (a reboot does, too)\n",
		},
	} {
		var out bytes.Buffer
		printDryRun(&out, tt.items, tt.unknown, tt.running, tt.used)
		if out.String() != tt.want {
			t.Errorf("prints\n%swant\n%s", out.String(), tt.want)
		}
	}
}
