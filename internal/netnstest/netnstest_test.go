package netnstest

import (
	"os"
	"testing"
)

func netnsOf(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink(threadNetNS)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNamespacesAreApart(t *testing.T) {
	home := netnsOf(t)
	a, b := New(t), New(t)
	seen := make(map[string]int)
	for _, n := range []NS{a, b, a} {
		n.Do(func() { seen[netnsOf(t)]++ })
	}
	Run(t, func() { seen[netnsOf(t)]++ })
	if len(seen) != 3 || seen[home] != 0 {
		t.Errorf("namespaces seen: %v, home is %s", seen, home)
	}
	if now := netnsOf(t); now != home {
		t.Errorf("the test is in %s, was in %s", now, home)
	}
}

func TestSkipInsideSkipsTheTest(t *testing.T) {
	var inner *testing.T
	t.Run("inner", func(t *testing.T) {
		inner = t
		Run(t, func() { t.Skip("skipped inside") })
		t.Error("the test went on")
	})
	if !inner.Skipped() {
		t.Error("the test was not skipped")
	}
}
