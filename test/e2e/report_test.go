package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// report says a figure that was measured, and what it should be (none: it is
// only told). In a soak run it goes to docs/soak.md, too, by way of the file
// that test/soak reads.
func (r *rig) report(what, value, target string) {
	r.t.Helper()
	r.t.Logf("%s: %s (target %s)", what, value, target)
	path := os.Getenv("EIPNET_SOAK_FIGURES")
	if !soak() || path == "" {
		return
	}
	if err := appendFigure(path, r.t.Name(), what, value, target); err != nil {
		r.t.Errorf("reporting %s: %v", what, err)
	}
}

func appendFigure(path, test, what, value, target string) error {
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return err
	}
	line, err := json.Marshal(map[string]string{
		"date": time.Now().UTC().Format(time.DateOnly), "kernel": unix.ByteSliceToString(kernel.Release[:]), "engine": engine(),
		"test": test, "what": what, "value": value, "target": target,
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}

func TestAppendFigure(t *testing.T) {
	path := t.TempDir() + "/figures"
	for _, value := range []string{"1", "2"} {
		if err := appendFigure(path, "TestX/sub", "foreign packets", value, "0"); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 2 || !strings.Contains(string(text), `"test":"TestX/sub","value":"2"`) {
		t.Errorf("the file has %d lines:\n%s", n, text)
	}
}
