package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/eipnet/eipnet/internal/model"
)

// TestUnknownVariables: a variable of ours that no flag of serve reads is a
// problem, which names the flag or the label that was meant.
func TestUnknownVariables(t *testing.T) {
	var flags pflag.FlagSet
	new(serveFlags).register(&flags)
	var all []string
	flags.VisitAll(func(f *pflag.Flag) { all = append(all, envName(f.Name)+"=x") })
	if got := unknownVariables(&flags, append(all, "PATH=/bin", "EIPNE=1")); len(got) > 0 {
		t.Errorf("of those that are known: %v", got)
	}
	for name, meant := range map[string]string{
		"EIPNET_NIC": "eip.nic", "EIPNET_FALLBACK": "eip.fallback", "EIPNET_EIPS": "EIPNET_EIP", "EIPNET_STRICT_NETWORK": "EIPNET_STRICT_NETWORKS", "EIPNET_LOGLEVEL": "EIPNET_LOG_LEVEL",
	} {
		got := unknownVariables(&flags, []string{name + "=eth1"})
		if len(got) != 1 || got[0].Code != model.CodeSettingUnused || got[0].Subject != name || !strings.HasSuffix(got[0].Text, " "+meant) {
			t.Errorf("%s: %v, want it to name %s", name, got, meant)
		}
	}
}
