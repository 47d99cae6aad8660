package state

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzRecord loads records whose bytes somebody else wrote, and such as bear a
// right checksum and any content: nothing panics, a record that is refused
// leaves nothing behind, and one that is taken can be written and read again.
func FuzzRecord(f *testing.F) {
	for _, s := range []struct{ bucket, key, body string }{
		{bucketNetworks, "n", `{"id":"n","bridge":"b","subnet4":"172.19.0.0/16","gateway4":"172.19.0.1","options":{"eip.nic":"eth1"},"mtu":1400}`},
		{bucketNetworks, "n", `{"id":"n","subnet4":"","gateway6":"fe80::1%eth0","mtu":-1}`},
		{bucketEndpoints, "e", `{"id":"e","network_id":"n","addr4":"172.19.0.2","phase":"joined","container":{"known":true,"labels":{"eip.nic":"eth1"},"ignored":["a=b"]},"publishes":[{"proto":6,"host_port":8090,"port":8080}]}`},
		{bucketEndpoints, "e", `{"id":"e","publishes":[{"proto":300}]}`},
		{bucketNICs, "eth1", `2`},
		{bucketNICs, "eth1", `"two"`},
		{bucketOriginals, "net/ipv4/ip_forward", `"0"`},
		{bucketRebinds, "c", `{"container_id":"c","name":"app","options":{"eip.nic":"eth2"}}`},
		{bucketMeta, keySchema, `1`},
		{"", "", ``},
	} {
		f.Add(s.bucket, s.key, []byte(s.body))
	}
	f.Fuzz(func(t *testing.T, bucket, key string, body []byte) {
		s := newStore("", quiet)
		refused := func(raw []byte) bool {
			before := s.digest
			if s.loadRecord(bucket, key, raw) == nil {
				return false
			}
			if s.digest != before || s.records()[bucket][key] != nil {
				t.Errorf("%s %q: refused, and yet there", bucket, key)
			}
			return true
		}
		if _, ours := s.records()[bucket]; !ours {
			return
		}
		if !refused(body) && binary.BigEndian.Uint32(body[1:]) != sum(bucket, key, body[recordHeader:]) {
			t.Errorf("%s %q: taken with a wrong checksum", bucket, key)
		}
		s = newStore("", quiet)
		raw := slices.Concat(binary.BigEndian.AppendUint32([]byte{recordVersion}, sum(bucket, key, body)), body)
		if refused(raw) {
			return
		}
		if s.loadRecord(bucket, key, raw) == nil {
			t.Errorf("%s %q: taken twice", bucket, key)
		}
		value := s.value(bucket, key)
		again, err := encode(bucket, key, value)
		if err != nil {
			t.Fatal(err)
		}
		s2 := newStore("", quiet)
		if err := s2.loadRecord(bucket, key, again); err != nil {
			t.Fatalf("%s %q: read %+v, written as %q: %v", bucket, key, value, again, err)
		}
		if diff := cmp.Diff(value, s2.value(bucket, key), compare); diff != "" {
			t.Errorf("%s %q (-read +written and read)\n%s", bucket, key, diff)
		}
	})
}

// value is what a record was read as.
func (s *Store) value(bucket, key string) any {
	switch bucket {
	case bucketNetworks:
		return s.networks.values[key]
	case bucketEndpoints:
		return s.endpoints.values[key]
	case bucketNICs:
		return s.nics.values[key]
	case bucketOriginals:
		return s.originals.values[key]
	}
	return s.rebinds.values[key]
}
