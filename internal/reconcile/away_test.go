package reconcile_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/reconcile"
)

// TestDockerIsGivenTime: a daemon that has just started has not heard of Docker
// yet; status says so at once, and the log when Docker has had its time.
func TestDockerIsGivenTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.said = []model.Problem{{Code: model.CodeDockerAway, Severity: model.Failure, Subject: "unix:///var/run/docker.sock", Text: "no answer"}}
		l := start(t, w)
		logged := func() bool {
			synctest.Wait()
			return strings.Contains(w.log.String(), "code=docker-away")
		}
		if res, err := l.Last(t.Context()); err != nil || len(res.Problems) != 1 {
			t.Errorf("status has %v, %v", res, err)
		}
		if logged() {
			t.Errorf("logged at the start:\n%s", w.log.String())
		}
		wait(reconcile.DockerPatience)
		if !logged() {
			t.Error("never logged")
		}
		w.do(func() { w.said = nil })
		l.Poke()
		wait(reconcile.MinInterval)
		if synctest.Wait(); !strings.Contains(w.log.String(), `msg="problem solved" code=docker-away`) {
			t.Errorf("not solved:\n%s", w.log.String())
		}
	})
}
