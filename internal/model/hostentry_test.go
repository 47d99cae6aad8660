package model

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParsePublish(t *testing.T) {
	for s, want := range map[string]Publish{
		"8090:80":                   {Proto: TCP, HostPort: 8090, Port: 80},
		"8090:80/udp":               {Proto: UDP, HostPort: 8090, Port: 80},
		"172.31.0.14:53:53/tcp":     {Proto: TCP, HostIP: netip.MustParseAddr("172.31.0.14"), HostPort: 53, Port: 53},
		"[2001:db8::14]:8090:80":    {Proto: TCP, HostIP: netip.MustParseAddr("2001:db8::14"), HostPort: 8090, Port: 80},
		"[::ffff:10.0.0.1]:8090:80": {Proto: TCP, HostIP: netip.MustParseAddr("10.0.0.1"), HostPort: 8090, Port: 80},
	} {
		if got, err := ParsePublish(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "80", "a:b", "0:80", "80:0", "80:65536", "80:80/sctp", "host:80:80", "80:80:80:80", ":80", "80:"} {
		if got, err := ParsePublish(s); err == nil {
			t.Errorf("%q: %v, want an error", s, got)
		}
	}
}

func TestSelectNIC(t *testing.T) {
	for nic, want := range map[string]string{
		"eth1": KeyNIC, "172.31.0.14": KeyIP, "2001:db8::14": KeyIP, "02:42:ac:1f:00:0e": KeyMAC,
	} {
		if got, err := SelectNIC(nic); err != nil || got[want] != nic {
			t.Errorf("%s: %v, %v", nic, got, err)
		}
	}
	for _, nic := range []string{"", "a name that is too long", "eth/1"} {
		if got, err := SelectNIC(nic); err == nil {
			t.Errorf("%q: %v, want an error", nic, got)
		}
	}
}

func TestCheckHostEntry(t *testing.T) {
	good := func() HostEntry {
		return HostEntry{Name: "web", Address: netip.MustParseAddr("172.19.0.100"), Options: map[string]string{KeyNIC: "eth1"}}
	}
	e := good()
	if err := e.Check(); err != nil || e.Bridge != "br-web" {
		t.Errorf("bridge %q, %v", e.Bridge, err)
	}
	for want, edit := range map[string]func(*HostEntry){
		"is no name:":        func(e *HostEntry) { e.Name = "a b" },
		"say --bridge":       func(e *HostEntry) { e.Name = "a-rather-long-name" },
		"no name of a bridg": func(e *HostEntry) { e.Bridge = "br/1" },
		"IPv4 address":       func(e *HostEntry) { e.Address = netip.MustParseAddr("fd00::1") },
		"which NIC?":         func(e *HostEntry) { e.Options = map[string]string{KeyExcept: "10.0.0.0/8"} },
		"unknown option":     func(e *HostEntry) { e.Options[KeyNIC+"s"] = "eth1" },
		"has no IPv6": func(e *HostEntry) {
			e.Publishes = []Publish{{Proto: TCP, HostIP: netip.IPv6Unspecified(), HostPort: 80, Port: 8080}}
		},
		"say another one": func(e *HostEntry) {
			e.Publishes = []Publish{{Proto: TCP, HostIP: netip.IPv4Unspecified(), HostPort: 80, Port: 80}}
		},
	} {
		e := good()
		edit(&e)
		if err := e.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want it to say %q", e, err, want)
		}
	}
}
