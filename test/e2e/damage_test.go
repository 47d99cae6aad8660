package e2e

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/eipnet/eipnet/test/lab"
)

// stateDamage is something wrong with the state file, and what status says then.
type stateDamage struct {
	name, says string
	damage     func() error
}

// TestDamagedState: whatever is wrong with the state file at a start, it is set
// aside and status says so; what runs goes on as it is, and leaves as it did. A
// file that is moved back is good again.
func TestDamagedState(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.stop()
	path := r.Host.Path("/var/lib/eipnet/state.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damages := []stateDamage{
		{"truncated", "damaged", func() error { return os.Truncate(path, int64(len(good)/2)) }},
		{"bit flipped", "", func() error {
			// In a record, wherever bbolt has it or had it before.
			was, is := []byte(`"bridge":"`+bridge), []byte(`"bridge":"`+string(bridge[0]^4)+bridge[1:])
			return os.WriteFile(path, bytes.ReplaceAll(good, was, is), 0o600)
		}},
		{"from a newer version", "written by a newer eipnet", func() error {
			db, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			defer db.Close()
			return db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("schema"), []byte("99")) })
		}},
	}
	if soak() {
		damages = append(damages,
			stateDamage{"empty", "damaged", func() error { return os.Truncate(path, 0) }},
			stateDamage{"overwritten", "damaged", func() error { return os.WriteFile(path, bytes.Repeat([]byte{0xa5}, len(good)), 0o600) }},
		)
	}
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.damage(); err != nil {
				t.Fatal(err)
			}
			r.serve()
			r.problem("/var/lib/eipnet/state.db", tt.says)
			r.problem("network "+network, "does not remember")
			for range 3 {
				r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
				r.leaves(t, "app1", r.EIP("eth1").String())
			}
			r.clean()
			r.stop()
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	r.serve()
	r.eventually("status without a problem", func() error {
		s, err := r.status()
		if err == nil && len(s.Problems) > 0 {
			err = fmt.Errorf("%v", s.Problems)
		}
		return err
	})
	r.docker("restart", "-t", "0", "app1")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.leaves(t, "app1", r.EIP("eth1").String())
	r.clean()
}
