package state

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/eipnet/eipnet/internal/model"
)

func TestRebinds(t *testing.T) {
	s, path := newFile(t)
	if all := s.Rebinds(); len(all) != 0 {
		t.Fatalf("a new file has %v", all)
	}
	ok(t, s.DeleteRebind("absent"))
	mustClose(t, s)
	s = mustOpen(t, path) // a file of before there were any
	web := model.Rebind{ContainerID: "c1", Name: "web", Options: map[string]string{"eip.nic": "eth2"}, Lost: []string{"e1"}}
	ok(t, s.PutRebind(web))
	got, _ := s.Rebind("c1")
	got.Options["eip.nic"], got.Lost[0] = "spoilt", "spoilt"
	mustClose(t, s)

	s = mustOpen(t, path)
	if d := cmp.Diff([]model.Rebind{web}, s.Rebinds()); d != "" {
		t.Errorf("after a restart (-want +got):\n%s", d)
	}
	ok(t, s.PutRebind(model.Rebind{ContainerID: "c2"}))
	ok(t, s.DeleteRebind("c1"))
	mustClose(t, s)

	edit(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketRebinds)) })
	s, problem, err := Open(path, quiet)
	ok(t, err)
	defer mustClose(t, s)
	if problem == nil || !strings.Contains(problem.Text, "some, of which nothing is left") {
		t.Errorf("a lost bucket: %v", problem)
	}
}
