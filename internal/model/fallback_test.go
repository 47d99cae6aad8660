package model_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
)

func TestFallback(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want model.Fallback
		nics []string
		host bool
		err  string
	}{
		{in: "hold", want: "hold"},
		{in: "host", want: "host", host: true},
		{in: "eth2", want: "eth2", nics: []string{"eth2"}},
		{in: "eth2, eth3", want: "eth2,eth3", nics: []string{"eth2", "eth3"}},
		{in: "eth2,host", want: "eth2,host", nics: []string{"eth2"}, host: true},
		{in: "eth2,hold", want: "eth2", nics: []string{"eth2"}},
		{in: "host,eth2", err: "host ends the list"},
		{in: "hold,hold", err: "hold ends the list"},
		{in: "eth2,,eth3", err: `"" is neither hold nor host`},
		{in: "eth2,eth2", err: "names eth2 twice"},
	} {
		o, err := model.ParsePinOptions(map[string]string{"eip.fallback": tc.in})
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: %v, want %q", tc.in, err, tc.err)
			}
			continue
		}
		f := o.Fallback
		if err != nil || f != tc.want || !slices.Equal(f.NICs(), tc.nics) || f.Host() != tc.host || f.Holds() != (tc.in == "hold") {
			t.Errorf("%q: %q, NICs %v, host %v, holds %v, %v", tc.in, f, f.NICs(), f.Host(), f.Holds(), err)
		}
	}
}

// A fallback stays below what the network allows.
func TestFallbackCeiling(t *testing.T) {
	for _, tc := range []struct{ network, fallback, want string }{
		{"allow=eth0,eth1", "eth0", ""},
		{"allow=eth0,eth1", "eth0,eth2", "eip.fallback=eth0,eth2 goes beyond"},
		{"allow=eth0,eth1", "eth0,host", "may leave by any"},
		{"nic=eth1 lock=true", "eth0", "is locked"},
		{"nic=eth1 lock=true", "hold", ""},
		{"nic=eth1 lock=true fallback=eth0", "eth0", ""},
		{"nic=eth1 lock=true fallback=eth0", "", ""},
	} {
		options := make(map[string]string)
		for f := range strings.FieldsSeq(tc.network) {
			k, v, _ := strings.Cut(f, "=")
			options["eip."+k] = v
		}
		said := model.Said{Labels: map[string]string{"eip.nic": "eth1"}, Networks: []model.Network{{Name: "net", Options: options}}}
		if tc.fallback != "" {
			said.Labels["eip.fallback"] = tc.fallback
		}
		_, err := said.Decide()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s, eip.fallback=%s: %v, want %q", tc.network, tc.fallback, err, tc.want)
		}
	}
}
