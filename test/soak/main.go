// Command soak makes docs/soak.md out of the figures that a soak run's tests
// have written, one JSON object a line. Its arguments are a paragraph of the page:
// what else is to be known of that run.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// figure is one line.
type figure struct {
	Date, Kernel, Engine      string
	Test, What, Value, Target string
}

// row is what a line of the table is about.
type row struct{ test, what, target string }

func main() {
	if err := render(os.Stdin, os.Stdout, strings.Join(os.Args[1:], " ")); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// render writes the page: a row for each figure, in the order of the tests, and a column for each engine.
func render(in io.Reader, out io.Writer, note string) error {
	var rows []row
	var engines, dates, kernels []string
	values := map[row]map[string]string{}
	for dec := json.NewDecoder(in); ; {
		var f figure
		err := dec.Decode(&f)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the figures: %w", err)
		}
		r := row{f.Test, f.What, f.Target}
		if values[r] == nil {
			values[r] = map[string]string{}
			rows = append(rows, r)
		}
		values[r][f.Engine] = f.Value
		engines, dates, kernels = append(engines, f.Engine), append(dates, f.Date), append(kernels, f.Kernel)
	}
	if len(rows) == 0 {
		return errors.New("there are no figures")
	}
	set := func(s []string) []string { slices.Sort(s); return slices.Compact(s) }
	engines = set(engines)
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.test, b.test) })

	var b strings.Builder
	fmt.Fprintf(&b, `# Soak

What the end-to-end tests measured at full size. `+"`make soak`"+` runs them with each engine and writes this page.

Date: %s. Kernel: %s. Everything, cloud and engines included, ran on one machine.
%s
| Test | Figure | Target | %s |
|---|---|---|%s
`, strings.Join(set(dates), ", "), strings.Join(set(kernels), ", "), paragraph(note), "Docker "+strings.Join(engines, " | Docker "), strings.Repeat("---|", len(engines)))
	for _, r := range rows {
		fmt.Fprintf(&b, "| `%s` | %s | %s |", r.test, cell(r.what), cell(r.target))
		for _, e := range engines {
			fmt.Fprintf(&b, " %s |", cell(values[r][e]))
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// paragraph is the text with a blank line before it, if there is any.
func paragraph(text string) string {
	if text == "" {
		return ""
	}
	return "\n" + text + "\n"
}

// cell keeps a table a table.
func cell(s string) string {
	if s == "" {
		return "–"
	}
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s)
}
