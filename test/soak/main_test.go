package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRender(t *testing.T) {
	in := `{"date":"2026-01-02","kernel":"6.18","engine":"28.5","test":"TestZ","what":"foreign packets","value":"0","target":"0"}
{"date":"2026-01-02","kernel":"6.18","engine":"28.5","test":"TestA","what":"first SYN answered","value":"99.5 %","target":"≥ 99 %"}
{"date":"2026-01-01","kernel":"6.18","engine":"20.10","test":"TestZ","what":"foreign packets","value":"0 | 1","target":"0"}
{"date":"2026-01-01","kernel":"6.18","engine":"20.10","test":"TestZ","what":"took","value":"3s","target":""}
`
	want := `
Date: 2026-01-01, 2026-01-02. Kernel: 6.18. Everything, cloud and engines included, ran on one machine.

On a busy machine.

| Test | Figure | Target | Docker 20.10 | Docker 28.5 |
|---|---|---|---|---|
` + "| `TestA` | first SYN answered | ≥ 99 % | – | 99.5 % |\n" +
		"| `TestZ` | foreign packets | 0 | 0 \\| 1 | 0 |\n" +
		"| `TestZ` | took | – | 3s | – |\n"
	var out strings.Builder
	if err := render(strings.NewReader(in), &out, "On a busy machine."); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(out.String(), "writes this page.\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, in := range map[string]string{"nothing": "", "no JSON": "foreign packets: 0"} {
		if err := render(strings.NewReader(in), &out, ""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
