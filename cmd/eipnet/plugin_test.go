package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// TestPluginConfig: plugin/config.json takes every flag of serve as a setting,
// and gives no value to those that it leaves to the daemon's defaults.
func TestPluginConfig(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "plugin", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Env []struct {
			Name     string
			Value    *string
			Settable []string
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	// What has to fit the plugin's own mounts, and whether a user may change it.
	fixed := map[string]string{
		"EIPNET_HOST_ROOT": "", "EIPNET_STATE_DIR": "", "EIPNET_PLUGIN_SOCKET": "",
		"EIPNET_API_SOCKET": "value", "EIPNET_DOCKER_HOST": "value", "EIPNET_HOST_DIR": "value",
	}
	got, want := make(map[string]string), make(map[string]string)
	var flags pflag.FlagSet
	new(serveFlags).register(&flags)
	flags.VisitAll(func(f *pflag.Flag) { want[envName(f.Name)] = "value" })
	maps.Copy(want, fixed)
	for _, e := range config.Env {
		if !strings.HasPrefix(e.Name, "EIPNET_") {
			continue
		}
		got[e.Name] = strings.Join(e.Settable, ",")
		if _, mine := fixed[e.Name]; mine != (e.Value != nil) {
			t.Errorf("%s has the value %v: an empty one is not the flag's default", e.Name, e.Value)
			continue
		}
		if e.Value != nil {
			if err := flags.Set(strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(e.Name, "EIPNET_"), "_", "-")), *e.Value); err != nil {
				t.Errorf("%s: %v", e.Name, err)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings of plugin/config.json (-flags +config.json):\n%s", diff)
	}
}
