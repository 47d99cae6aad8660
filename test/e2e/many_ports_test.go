package e2e

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/eipnet/eipnet/test/lab"
)

// manyPorts: a container's ports, however many, cost one transaction in
// nftables when they come and one when they go, and less time than on Docker's
// bridge in the same lab, which starts programs for each. All of them answer.
func (r *rig) manyPorts(t *testing.T) {
	ports := 32
	if soak() && engine() == pageEngine {
		ports = 1000 // for which Docker's bridge takes minutes
	}
	const first = 20000
	var publish []string
	for i := range ports {
		publish = append(publish, "-p", fmt.Sprintf("%d:8080", first+i))
	}
	cost := func(args ...string) (c portsCost) {
		before := r.generation(t)
		start := time.Now()
		r.docker(args...)
		return portsCost{time.Since(start), r.generation(t) - before}
	}
	run := func(network string, args ...string) portsCost {
		return cost(slices.Concat([]string{"run", "-d", "--name", "many", "--network", network, "--label", "eip.nic=eth1"}, args, []string{lab.Image})...)
	}
	remove := func() portsCost { return cost("rm", "-f", "many") }

	// A start or an end takes one more where Docker's API is slow, as the container is held
	// until it answers: the least of a few rounds counts. The container of the last one stays.
	start := func(args ...string) (come, gone portsCost) {
		const rounds = 4
		come, gone = run(network, args...), portsCost{math.MaxInt64, math.MaxUint32}
		for range rounds - 1 {
			gone = gone.least(remove())
			come = come.least(run(network, args...))
		}
		return come, gone
	}
	none, noneGone := start()
	remove()
	ours, oursGone := start(publish...)
	if ours.transactions > none.transactions+1 || oursGone.transactions > noneGone.transactions+1 {
		t.Errorf("a container took %d transactions to start and %d to go with %d ports, %d and %d without any",
			ours.transactions, oursGone.transactions, ports, none.transactions, noneGone.transactions)
	}
	r.allAnswer(t, first, ports)
	if got := r.publishedPorts(t, "many"); len(got) != 2*ports { // in both families
		t.Errorf("status shows %d ports of %d", len(got), 2*ports)
	}
	oursGone = oursGone.least(remove())

	docker := run("plain", publish...)
	dockerGone := remove()
	what := fmt.Sprintf("docker run with %d published ports, against Docker's own bridge", ports)
	r.report(what, fmt.Sprintf("%v, %v", ours.took.Round(time.Millisecond), docker.took.Round(time.Millisecond)), "less")
	r.report(fmt.Sprintf("docker rm of it with %d published ports, against Docker's own bridge", ports), fmt.Sprintf("%v, %v", oursGone.took.Round(time.Millisecond), dockerGone.took.Round(time.Millisecond)), "less")
	r.report(fmt.Sprintf("nftables transactions for %d published ports, against Docker's own bridge", ports), fmt.Sprintf("%d, %d", ours.transactions-none.transactions, docker.transactions), "1")
	if ours.took > docker.took || oursGone.took > dockerGone.took {
		t.Errorf("%s: longer", what)
	}
	r.clean()
}

// portsCost is what a docker command took.
type portsCost struct {
	took         time.Duration
	transactions uint32 // in nftables
}

func (c portsCost) least(o portsCost) portsCost {
	return portsCost{min(c.took, o.took), min(c.transactions, o.transactions)}
}

// generation counts nftables' transactions in the host's namespace, whoever makes them.
func (r *rig) generation(t *testing.T) uint32 {
	t.Helper()
	var gen uint32
	if err := r.InHost(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		g, err := conn.GetGen()
		if err == nil {
			gen = g.ID
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return gen
}

// allAnswer asks every port of eth1's EIP from the site.
func (r *rig) allAnswer(t *testing.T, first, ports int) {
	t.Helper()
	r.answers(r.url("eth1", first), r.EIP("eth1").String())
	errs := make([]error, ports)
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				got, err := r.SiteGet(t.Context(), r.url("eth1", first+i)+"hello")
				if err == nil && got != "hello" {
					err = errors.New("it answered " + strconv.Quote(got))
				}
				if err != nil {
					errs[i] = fmt.Errorf("port %d: %w", first+i, err)
				}
			}
		})
	}
	for i := range ports {
		next <- i
	}
	close(next)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}
