package snat

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const accepts = "-A EIPNET-FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment eipnet -j ACCEPT\n" +
	"-A EIPNET-FORWARD -i br0 -o br0 -m comment --comment eipnet -j ACCEPT\n" +
	"-A EIPNET-FORWARD -o br0 -m comment --comment eipnet -j DROP\n" +
	"-A EIPNET-FORWARD -i br0 -m comment --comment eipnet -j ACCEPT\n"

func TestDockerUser(t *testing.T) {
	tests := []struct {
		name  string
		rules []string // in DOCKER-USER before
		want  string   // in DOCKER-USER after
	}{
		{"empty", nil, jumpRule + "\n"},
		{"before the return", []string{"-j RETURN"}, jumpRule + "\n" + returnRule + "\n"},
		{"after the user's rules", []string{"-s 192.0.2.1/32 -j DROP"}, "-A DOCKER-USER -s 192.0.2.1/32 -j DROP\n" + jumpRule + "\n"},
		{
			"between both",
			[]string{"-s 192.0.2.1/32 -m comment --comment users -j DROP", "-j RETURN"},
			"-A DOCKER-USER -s 192.0.2.1/32 -m comment --comment users -j DROP\n" + jumpRule + "\n" + returnRule + "\n",
		},
	}
	for _, command := range []string{"iptables", "ip6tables", "iptables-legacy"} {
		for _, tt := range tests {
			t.Run(command+" "+tt.name, func(t *testing.T) {
				ns := newNamespace(t)
				if _, err := ns.exec(t.Context(), "", command+" --version"); err != nil {
					t.Skip(err)
				}
				ns.run(t, command+" -N DOCKER-USER")
				for _, r := range tt.rules {
					if command == "ip6tables" {
						r = strings.Replace(r, "192.0.2.1/32", "2001:db8::1/128", 1)
					}
					ns.run(t, command+" -A DOCKER-USER "+r)
				}
				before := ns.run(t, command+" -S")
				d := newDockerUser(t, ns)
				applyDockerUser(t, ns, d, true, "br0", "br0")
				got := ns.run(t, command+" -S")
				want := tt.want
				if command == "ip6tables" {
					want = strings.Replace(want, "192.0.2.1/32", "2001:db8::1/128", 1)
				}
				if diff := cmp.Diff(want+accepts, rulesOnly(got)); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
				applyDockerUser(t, ns, d, false, "br0")
				if got := leftInDockerUser(t, ns, d); len(got) != 2 || !strings.HasSuffix(got[0], jumpRule) || !strings.HasSuffix(got[1], "chain EIPNET-FORWARD") {
					t.Errorf("left: %q", got)
				}
				applyDockerUser(t, ns, d, true, "br0", "br1")
				applyDockerUser(t, ns, d, true)
				applyDockerUser(t, ns, d, false)
				if diff := cmp.Diff(before, ns.run(t, command+" -S")); diff != "" {
					t.Errorf("after removal (-want +got):\n%s", diff)
				}
				if got := leftInDockerUser(t, ns, d); len(got) > 0 {
					t.Errorf("left after removal: %q", got)
				}
			})
		}
	}
}

func leftInDockerUser(t *testing.T, ns *namespace, d *DockerUser) (left []string) {
	t.Helper()
	var err error
	ns.Do(func() { left, err = d.Left(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func TestDockerUserAbsent(t *testing.T) {
	ns := newNamespace(t)
	d := newDockerUser(t, ns)
	before := ns.run(t, "nft list ruleset")
	for _, tt := range []struct {
		bridges []string
		want    Outcome
	}{{[]string{"br0"}, Outcome{Absent: true}}, {nil, Outcome{}}} {
		if got := outcome(t, ns, d, tt.bridges...); got != tt.want {
			t.Errorf("Apply(%q): %+v, want %+v", tt.bridges, got, tt.want)
		}
	}
	if diff := cmp.Diff(before, ns.run(t, "nft list ruleset")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := ns.run(t, "cat /proc/thread-self/net/ip_tables_names"); got != "" {
		t.Errorf("legacy tables were made: %q", got)
	}
	if got := outcome(t, ns, &DockerUser{}, "br0"); got != (Outcome{}) {
		t.Errorf("without iptables: %+v", got)
	}
	ns.run(t, "ip6tables -N DOCKER-USER") // Docker comes up, IPv6 first
	if got := outcome(t, ns, d, "br0"); got != (Outcome{Changed: true, Absent: true}) {
		t.Errorf("with a chain for IPv6 only: %+v", got)
	}
	ns.run(t, "iptables -N DOCKER-USER")
	if got := outcome(t, ns, d, "br0"); got != (Outcome{Changed: true}) {
		t.Errorf("with a chain: %+v", got)
	}
}

// TestDockerUserAndPolicy: where the policy refuses, our jump is last in FORWARD,
// too, for as long as that is so: nobody may come by DOCKER-USER, or as far as our
// jump in it.
func TestDockerUserAndPolicy(t *testing.T) {
	for _, command := range []string{"iptables", "ip6tables", "iptables-legacy"} {
		t.Run(command, func(t *testing.T) {
			ns := newNamespace(t)
			if _, err := ns.exec(t.Context(), "", command+" --version"); err != nil {
				t.Skip(err)
			}
			d := newDockerUser(t, ns)
			const dockerJump = "-A FORWARD -j DOCKER-USER\n"
			const inForward = "-A FORWARD" + ourJump + "\n"
			for _, step := range []struct {
				name   string
				do     string
				writes bool
				want   string
			}{
				{"policy ACCEPT", "-P FORWARD ACCEPT", false, ""},
				{"policy DROP", "-P FORWARD DROP", true, inForward + accepts},
				{"a rule of the user's is appended", "-A FORWARD -j ufw", true, "-A FORWARD -j ufw\n" + inForward + accepts},
				{"Docker makes its chain", "-N DOCKER-USER", true, "-A FORWARD -j ufw\n" + inForward + jumpRule + "\n" + accepts},
				{"and jumps to it", "-I FORWARD -j DOCKER-USER", false, dockerJump + "-A FORWARD -j ufw\n" + inForward + jumpRule + "\n" + accepts},
				{
					"a RETURN of the user's, as in the recipe for ufw", "-I DOCKER-USER -p tcp -j RETURN", false,
					dockerJump + "-A FORWARD -j ufw\n" + inForward + "-A DOCKER-USER -p tcp -j RETURN\n" + jumpRule + "\n" + accepts,
				},
				{"all rules are flushed", "-F", true, inForward + jumpRule + "\n" + accepts},
				{"and the policy is ACCEPT", "-P FORWARD ACCEPT", true, jumpRule + "\n" + accepts},
			} {
				if step.do == "-A FORWARD -j ufw" {
					ns.run(t, command+" -N ufw")
				}
				ns.run(t, command+" "+step.do)
				applyDockerUser(t, ns, d, step.writes, "br0")
				applyDockerUser(t, ns, d, false, "br0")
				if diff := cmp.Diff(step.want, rulesOnly(ns.run(t, command+" -S"))); diff != "" {
					t.Errorf("%s (-want +got):\n%s", step.name, diff)
				}
			}
			ns.run(t, command+" -F DOCKER-USER", command+" -X DOCKER-USER", command+" -P FORWARD DROP")
			applyDockerUser(t, ns, d, true, "br0")
			if got := leftInDockerUser(t, ns, d); len(got) != 2 || !strings.HasSuffix(got[0], strings.TrimSpace(inForward)) {
				t.Errorf("left: %q", got)
			}
			applyDockerUser(t, ns, d, true)
			if got := rulesOnly(ns.run(t, command+" -S")); got != "" {
				t.Errorf("rules left:\n%s", got)
			}
		})
	}
}

// TestDockerUserHangs: an iptables that never ends does not take us along.
func TestDockerUserHangs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, name := range []string{"iptables", "iptables-restore"} {
		script := "#!/bin/sh\n[ \"$1\" = --version ] && echo 'iptables v1.8.9 (nf_tables)' || exec sleep 30\n"
		if err := os.WriteFile(dir+"/"+name, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d, err := NewDockerUser(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	d.tools = d.tools[:1]
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err = d.Apply(ctx, []string{"br0"}); err == nil || !strings.Contains(err.Error(), "accepting bridges by iptables: listing chain DOCKER-USER") {
		t.Errorf("got error %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestDockerUserWhileDockerWrites: Docker had taken its own jump out of FORWARD
// when we looked, and puts it back before we write; ours comes last all the same.
func TestDockerUserWhileDockerWrites(t *testing.T) {
	ns := newNamespace(t)
	ns.run(t, "iptables -N DOCKER-USER", "iptables -P FORWARD DROP", "iptables -A FORWARD -i docker0 -j ACCEPT")
	d := beforeRestore(t, ns, "%s -I FORWARD -j DOCKER-USER", 1)
	if _, err := applyIn(t, ns, d, "br0"); err != nil {
		t.Error(err)
	}
	want := "-A FORWARD -j DOCKER-USER\n-A FORWARD -i docker0 -j ACCEPT\n-A FORWARD" + ourJump + "\n"
	if diff := cmp.Diff(want, rulesOnly(ns.run(t, "iptables -S FORWARD"))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestDockerUserWhileOthersWrite: between looking and writing rules go, and
// there is no such place for our jump any more.
func TestDockerUserWhileOthersWrite(t *testing.T) {
	for _, tc := range []struct {
		times int
		fails bool
	}{{1, false}, {2, false}, {9, true}} {
		ns := newNamespace(t)
		ns.run(t, "iptables -N DOCKER-USER")
		for i := range 18 {
			ns.run(t, fmt.Sprintf("iptables -A DOCKER-USER -s 192.0.2.%d -j DROP", i))
		}
		ns.run(t, "iptables -A DOCKER-USER -j RETURN")
		d := beforeRestore(t, ns, "for i in 1 2; do %s -D DOCKER-USER 1; done", tc.times)
		if _, err := applyIn(t, ns, d, "br0"); (err != nil) != tc.fails {
			t.Errorf("others write %d times: %v", tc.times, err)
		}
		got := rulesOnly(ns.run(t, "iptables -S DOCKER-USER"))
		if strings.HasSuffix(got, jumpRule+"\n"+returnRule+"\n") == tc.fails {
			t.Errorf("others write %d times:\n%s", tc.times, got)
		}
	}
}

// beforeRestore returns a DockerUser of iptables alone that runs a command
// before it writes, so many times; %s is iptables.
func beforeRestore(t *testing.T, ns *namespace, command string, times int) *DockerUser {
	t.Helper()
	d := newDockerUser(t, ns)
	d.tools = d.tools[:1]
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\necho >> %s/n\n[ $(wc -l < %s/n) -gt %d ] || { "+command+"; }\nexec %s \"$@\"\n", dir, dir, times, d.tools[0].path, d.tools[0].restore)
	d.tools[0].restore = dir + "/restore"
	if err := os.WriteFile(d.tools[0].restore, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func applyIn(t *testing.T, ns *namespace, d *DockerUser, bridges ...string) (out Outcome, err error) {
	t.Helper()
	ns.Do(func() { out, err = d.Apply(t.Context(), bridges) })
	return out, err
}

func TestDockerUserRepairs(t *testing.T) {
	ns := newNamespace(t)
	ns.run(t, "iptables -N DOCKER-USER")
	d := newDockerUser(t, ns)
	applyDockerUser(t, ns, d, true, "br0")
	want := rulesOnly(ns.run(t, "iptables -S"))
	for _, harm := range [][]string{
		{"iptables -I DOCKER-USER -m comment --comment eipnet -j EIPNET-FORWARD"},
		{"iptables -A DOCKER-USER -m comment --comment x -j EIPNET-FORWARD"},
		{"iptables -F DOCKER-USER"},
		{"iptables -F EIPNET-FORWARD"},
		{"iptables -F DOCKER-USER", "iptables -F EIPNET-FORWARD", "iptables -X EIPNET-FORWARD"},
	} {
		ns.run(t, harm...)
		applyDockerUser(t, ns, d, true, "br0")
		if diff := cmp.Diff(want, rulesOnly(ns.run(t, "iptables -S"))); diff != "" {
			t.Errorf("after %q (-want +got):\n%s", harm, diff)
		}
	}
	ns.run(t, "iptables -A DOCKER-USER -s 192.0.2.1 -j DROP")
	applyDockerUser(t, ns, d, true, "br0")
	if got := rulesOnly(ns.run(t, "iptables -S")); !strings.HasPrefix(got, "-A DOCKER-USER -s 192.0.2.1/32 -j DROP\n"+jumpRule) {
		t.Errorf("a rule that the user appended does not decide first:\n%s", got)
	}
}

func TestDockerUserRefusesNames(t *testing.T) {
	d := &DockerUser{}
	for _, name := range []string{"", "a b", "x\nCOMMIT", "sixteencharacter"} {
		if _, err := d.Apply(t.Context(), []string{name}); err == nil {
			t.Errorf("bridge %q was accepted", name)
		}
	}
}

func newDockerUser(t *testing.T, ns *namespace) (d *DockerUser) {
	t.Helper()
	var err error
	ns.Do(func() { d, err = NewDockerUser(t.Context(), nil) })
	if err != nil {
		t.Fatal(err)
	}
	if len(d.tools) == 0 {
		t.Skip("no iptables")
	}
	return d
}

func applyDockerUser(t *testing.T, ns *namespace, d *DockerUser, want bool, bridges ...string) {
	t.Helper()
	if got := outcome(t, ns, d, bridges...); got.Changed != want {
		t.Fatalf("Apply(%q): %+v, want it to have written: %v", bridges, got, want)
	}
}

func outcome(t *testing.T, ns *namespace, d *DockerUser, bridges ...string) Outcome {
	t.Helper()
	out, err := applyIn(t, ns, d, bridges...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func rulesOnly(listing string) string {
	var out strings.Builder
	for line := range strings.Lines(listing) {
		if strings.HasPrefix(line, "-A ") {
			out.WriteString(line)
		}
	}
	return out.String()
}
