package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/test/lab"
)

// TestDemo runs what `make demo` runs: both public addresses answer with
// themselves, and the machine is as it was.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("needs an engine")
	}
	if l := lab.Start(t, lab.Config{}); l == nil { // skips where no lab can run
		return
	}
	demo := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", demo, "github.com/eipnet/eipnet/test/demo").CombinedOutput(); err != nil {
		t.Fatalf("building the demo: %v\n%s", err, out)
	}
	before, err := lab.MachineState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), demo, "-eipnet", binary(t), "-engine", engine()).CombinedOutput()
	if err != nil {
		t.Fatalf("the demo failed: %v\n%s", err, out)
	}
	for _, want := range []string{
		"$ curl http://109.25.48.65:8090/\n109.25.48.65\n",
		"$ curl http://119.26.38.75:8090/\n119.26.38.75\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo did not show %q:\n%s", want, out)
		}
	}
	lab.MachineAsBefore(t, before)
}
