package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/eipnet/eipnet/internal/model"
)

const envPrefix = "EIPNET_"

// envName is the variable that stands for a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// flagsFromEnv gives every flag that was not given on the command line the
// value of its environment variable, if that is set.
func flagsFromEnv(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		value, ok := os.LookupEnv(name)
		if !ok || f.Changed || f.Name == "help" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s=%q: %w", name, value, err))
		}
	})
	return errors.Join(errs...)
}

// labels are what a variable may have been meant to be, other than a flag.
var labels = []string{
	model.KeyNIC, model.KeyIP, model.KeyPublic, model.KeyMAC, model.KeyIP6, model.KeyFallback, model.KeyExcept,
	model.KeyAllow, model.KeyLock, model.KeyStrict,
}

// unknownVariables reports variables of ours, of environ, that are none of the flags'.
func unknownVariables(flags *pflag.FlagSet, environ []string) (problems []model.Problem) {
	var known []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			known = append(known, envName(f.Name))
		}
	})
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(known, name) {
			continue
		}
		meant := "the nearest one is " + slices.MinFunc(known, func(a, b string) int { return cmp.Compare(distance(name, a), distance(name, b)) })
		if label := model.Prefix + strings.ToLower(strings.TrimPrefix(name, envPrefix)); slices.Contains(labels, label) {
			meant = "which NIC and how is said by labels of containers and networks, as " + label
		}
		problems = append(problems, model.Problem{
			Code: model.CodeSettingUnused, Severity: model.Warning, Subject: name,
			Text: "eipnet serve has no setting of this name, so it has no effect; " + meant,
			Fix:  "correct the name or take the variable away, and restart the daemon",
		})
	}
	return problems
}

// distance counts the letters to insert, delete or change to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // for the part of a so far, and each beginning of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal, row[j+1] = row[j+1], min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
