package model_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

func TestParseRebind(t *testing.T) {
	for _, tc := range []struct {
		words string
		want  map[string]string
		err   string
	}{
		{words: "eth2", want: map[string]string{"eip.nic": "eth2"}},
		{words: "eip.public=119.26.38.75 eip.fallback=hold", want: map[string]string{"eip.public": "119.26.38.75", "eip.fallback": "hold"}},
		{words: "eip.fallback=host", err: "say where to, as eth1 or eip.nic=eth1"},
		{words: "eth2 eth3", err: "eip.nic is said twice"},
		{words: "eth2 eip.mac=02:42:ac:1f:00:0e", err: "both say which NIC"},
		{words: "nic=eth2", err: "unknown option nic"},
		{words: "a/b", err: "is no interface name"},
	} {
		got, err := model.ParseRebind(strings.Fields(tc.words))
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, want %q", tc.words, err, tc.err)
			}
		case err != nil:
			t.Errorf("%s: %v", tc.words, err)
		case cmp.Diff(tc.want, got) != "":
			t.Errorf("%s (-want +got):\n%s", tc.words, cmp.Diff(tc.want, got))
		}
	}
}

// TestRebindIsMostSpecific, and stays below what the networks allow.
func TestRebindIsMostSpecific(t *testing.T) {
	eip := func(s string) map[string]string {
		m := make(map[string]string)
		for f := range strings.FieldsSeq(s) {
			k, v, _ := strings.Cut(f, "=")
			m["eip."+k] = v
		}
		return m
	}
	for _, tc := range []struct {
		name, rebind, endpoint, label, network string
		want                                   string // selector and modifiers, or the error
		nic                                    string // that Allows judges
	}{
		{name: "over all", rebind: "nic=eth2", endpoint: "nic=eth1", label: "nic=eth0", network: "nic=eth3", want: "eip.nic=eth2"},
		{name: "modifiers of below stand", rebind: "nic=eth2", label: "nic=eth0 fallback=host", want: "eip.nic=eth2 eip.fallback=host"},
		{name: "modifiers override", rebind: "nic=eth2 fallback=hold", label: "nic=eth0 fallback=host", want: "eip.nic=eth2 eip.fallback=hold"},
		{name: "allowed", rebind: "nic=eth2", label: "nic=eth0", network: "allow=eth0,eth2", want: "eip.nic=eth2", nic: "eth2"},
		{name: "not allowed", rebind: "nic=eth3", label: "nic=eth0", network: "allow=eth0,eth2", want: "eth3 is beyond what its network allows", nic: "eth3"},
		{name: "excepted", rebind: "nic=eth2 except=0.0.0.0/0", network: "allow=eth2", want: "what goes to eip.except=0.0.0.0/0 may leave by any"},
		{name: "excepted by the network, too", rebind: "nic=eth2 except=10.1.0.0/16", network: "allow=eth2 except=10.0.0.0/8", want: "eip.nic=eth2 eip.except=10.1.0.0/16"},
		{name: "locked", rebind: "nic=eth2", network: "nic=eth1 lock=true", want: "is locked (eip.lock)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := model.Said{
				Rebind: eip(tc.rebind), Endpoints: []map[string]string{eip(tc.endpoint)}, Labels: eip(tc.label),
				Networks: []model.Network{{Name: "net", Options: eip(tc.network)}},
			}.Decide()
			if err == nil && tc.nic != "" {
				err = d.Allows(tc.nic)
			}
			got := d.PinOptions.String()
			if err != nil {
				got = err.Error()
			} else if d.From != model.FromRebind {
				t.Errorf("from %q", d.From)
			}
			if !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
