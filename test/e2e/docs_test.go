package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

var update = flag.Bool("update", false, "rewrite docs/bridge-parity.md and the captured blocks of docs/packet-path.md")

// pageEngine is the engine whose userland the page shows: what nft prints
// differs between its versions.
const pageEngine = "28.5"

// captures are the page's blocks: below the marker "<!-- captured: NAME -->"
// stands, fenced, what the command prints on the article's host.
var captures = []struct {
	name    string
	command []string
}{
	{"rules", []string{"ip", "rule"}},
	{"table-8100", []string{"ip", "route", "show", "table", "8100"}},
	{"table-8101", []string{"ip", "route", "show", "table", "8101"}},
	{"table-8102", []string{"ip", "route", "show", "table", "8102"}},
	{"table-8199", []string{"ip", "route", "show", "table", "8199"}},
	{"nft", []string{"nft", "list", "table", "inet", "eipnet"}},
	// Terse: ports and MACs differ from run to run.
	{"bridge", []string{"nft", "-t", "list", "table", "bridge", "eipnet"}},
}

var (
	capturedBlock = regexp.MustCompile("(?s)<!-- captured: (\\S+) -->\n```[a-z]*\n(.*?)```\n")
	fencedBlock   = regexp.MustCompile("(?s)```.*?```")

	counted  = regexp.MustCompile(`packets \d+ bytes \d+`)
	owner    = regexp.MustCompile(`\s*# progname \S+|\s+# handle \d+`)
	volatile = regexp.MustCompile(` linkdown\b| dead\b|\s+$`)

	// A rule's comment is its name, a colon, and a sum of what it says.
	ruleID  = regexp.MustCompile(`comment "([^:"]+):[0-9a-f]+"`)
	objects = regexp.MustCompile(`(?m)^\s*(?:chain|set|map|counter) (\S+) \{`)
)

// TestPacketPathPage: the ruleset in docs/packet-path.md is the one that the
// article's scenario makes, and the text around it names all that is in it.
// With -update it writes what it saw into the page.
func TestPacketPathPage(t *testing.T) {
	if engine() != pageEngine {
		t.Skipf("the page shows the output of engine %s's nft and ip; this run is with %s", pageEngine, engine())
	}
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app0", "--ip", "172.19.0.100", "--label", "eip.nic=eth0", "-p", "8090:8080")
	r.run(t, "app1", "--ip", "172.19.0.101", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.run(t, "free", "--ip", "172.19.0.102")
	r.answers(r.url("eth0", 8090), r.EIP("eth0").String())
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.awaitState("free", plan.StateUnpinned)
	r.clean()

	got := make(map[string]string)
	for _, c := range captures {
		got[c.name] = stable(r.on(c.command[0], c.command[1:]...))
	}
	path := filepath.Join("..", "..", "docs", "packet-path.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	if *update {
		page = withCaptures(page, got)
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shown := make(map[string]string)
	for _, m := range capturedBlock.FindAllStringSubmatch(page, -1) {
		shown[m[1]] = m[2]
	}
	if diff := cmp.Diff(shown, got); diff != "" {
		t.Errorf("docs/packet-path.md does not show what is on the host; after looking at the difference, make golden (-page +host):\n%s", diff)
	}
	if missing := unexplained(page, got); len(missing) > 0 {
		t.Errorf("docs/packet-path.md does not explain: %s", strings.Join(missing, ", "))
	}
}

// stable cuts out what two runs do not have in common.
func stable(text string) string {
	text = counted.ReplaceAllString(text, "packets 0 bytes 0")
	text = owner.ReplaceAllString(text, "")
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(volatile.ReplaceAllString(volatile.ReplaceAllString(line, ""), "") + "\n")
	}
	return b.String()
}

// withCaptures puts what was captured below the page's markers.
func withCaptures(page string, got map[string]string) string {
	return capturedBlock.ReplaceAllStringFunc(page, func(block string) string {
		name := capturedBlock.FindStringSubmatch(block)[1]
		text, ok := got[name]
		if !ok {
			return block
		}
		return fmt.Sprintf("<!-- captured: %s -->\n```text\n%s```\n", name, text)
	})
}

// unexplained lists names of rules, chains, sets, maps and counters, and the
// priorities of our ip rules, that the page's own text does not mention.
func unexplained(page string, got map[string]string) []string {
	prose := fencedBlock.ReplaceAllString(page, "")
	var names []string
	for _, re := range []*regexp.Regexp{ruleID, objects} {
		for _, m := range re.FindAllStringSubmatch(got["nft"]+got["bridge"], -1) {
			names = append(names, m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^(51\d\d|3270\d):`).FindAllStringSubmatch(got["rules"], -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		return strings.Contains(prose, "`"+name+"`")
	})
}

// TestUninstall: the README's commands leave the host as it was before eipnet
// was started. They are the same in both languages.
func TestUninstall(t *testing.T) {
	for _, block := range []string{"uninstall-docker", "uninstall-host"} {
		if diff := cmp.Diff(tested(t, "README.md", block), tested(t, "README.zh-CN.md", block)); diff != "" {
			t.Errorf("%s (-English +Chinese):\n%s", block, diff)
		}
	}
	r := prepare(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "1"})
	state := func() string {
		t.Helper()
		s, err := r.HostState(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// With its first stock network Docker makes a table raw that stays.
	r.docker("network", "create", "stock")
	r.docker("run", "--rm", "--network", "stock", lab.Image, "get", siteIP)
	r.docker("network", "rm", "stock")
	before := state()
	r.serve()
	r.createNetwork()
	r.docker("run", "-d", "--name", "app0", "--network", network, "--label", "eip.nic=eth0", "-p", "8090:8080", lab.Image)
	r.docker("run", "-d", "--name", "app1", "--network", network, "--label", "eip.nic=eth1", "-p", "8090:8080", lab.Image)
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	if state() == before {
		t.Fatal("eipnet changes nothing on the host: the comparison sees nothing")
	}
	r.cleanupRefused(t, "the daemon runs (process ", "stop it first")
	if out, err := r.Host.Run(t.Context(), "eipnet", "serve"); err == nil || !strings.Contains(err.Error(), "another eipnet runs (process ") {
		t.Errorf("a second daemon: %s, %v", out, err)
	}
	for _, line := range tested(t, "README.md", "uninstall-docker") {
		args := strings.Fields(line)
		if args[0] != "docker" {
			t.Fatalf("%q is no docker command", line)
		}
		r.docker(args[1:]...)
	}
	r.eventually("what is written of the network's removal to be written", func() error {
		for _, tool := range []string{"iptables", "ip6tables"} {
			if rules := r.on(tool, "-S"); strings.Contains(rules, "EIPNET-FORWARD") {
				return errors.New(rules)
			}
		}
		return nil
	})
	r.kill() // a clean end would leave less
	r.on("nft", "add", "table", "bridge", "eipnet")
	for _, family := range []string{"-4", "-6"} {
		r.on("ip", family, "rule", "add", "pref", "32701", "iif", "lo", "lookup", "8102", "protocol", "201")
	}
	for _, line := range tested(t, "README.md", "uninstall-host") {
		line = strings.TrimPrefix(line, "sudo ")
		if target, is := strings.CutPrefix(line, "make "); is {
			r.make(target)
			continue
		}
		r.on("sh", "-c", line)
	}
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(state(), "\n")); diff != "" {
		t.Errorf("the README's commands leave something behind (-before +after):\n%s", diff)
	}
	if out, err := r.Host.Run(t.Context(), "ls", "/var/lib/eipnet", "/run/eipnet", "/run/docker/plugins/eipnet.sock", "/usr/local/bin/eipnet"); err == nil || out != "" {
		t.Errorf("files are still there: %s", out)
	}
	if err := r.Host.Install(binary(t), "eipnet"); err != nil {
		t.Fatal(err)
	}
	r.cleanupInUse(t, before)
}

// cleanupRefused checks that cleanup is refused with these words, and changes nothing.
func (r *rig) cleanupRefused(t *testing.T, words ...string) {
	t.Helper()
	rules := r.on("ip", "rule")
	out, err := r.Host.Run(t.Context(), "eipnet", "cleanup")
	if err == nil {
		t.Errorf("cleanup was not refused: %s", out)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("cleanup said %q, which does not name %q", err, w)
		}
	}
	if diff := cmp.Diff(rules, r.on("ip", "rule")); diff != "" {
		t.Errorf("refused, and yet it changed the rules:\n%s", diff)
	}
}

// cleanupInUse takes eipnet away from under running containers: nothing leaves
// by a wrong NIC meanwhile, not even of connections that are established.
func (r *rig) cleanupInUse(t *testing.T, before string) {
	r.serve()
	r.createNetwork()
	r.docker("network", "create", "stock")
	r.docker("run", "-d", "--name", "ours", "--network", network, "--label", "eip.nic=eth1", lab.Image)
	r.docker("run", "-d", "--name", "theirs", "--network", "stock", "--label", "eip.nic=eth1", lab.Image)
	r.leaves(t, "ours", r.EIP("eth1").String())
	r.leaves(t, "theirs", r.EIP("eth1").String())
	for _, name := range []string{"ours", "theirs"} {
		r.docker("exec", "-d", name, "/app", "tcp", "--hold", "--interval", "5ms", lab.SiteAddr.String()+":7")
	}
	sent := func() int {
		return r.Site.Count(func(s lab.Seen) bool { return s.Proto == "tcp" && s.Src.Addr() == r.EIP("eth1") && s.Detail != "" })
	}
	r.eventually("the sessions to be established", func() error {
		if n := sent(); n < 20 {
			return fmt.Errorf("%d lines were sent", n)
		}
		return nil
	})
	r.resetSniffers()
	r.kill()
	r.cleanupRefused(t, "network "+network, "container theirs", "--force")
	dry := r.on("eipnet", "cleanup", "--dry-run")
	for _, want := range []string{"would remove table inet eipnet\n", "would remove link " + bridge + "\n", "# cleanup would refuse without --force"} {
		if !strings.Contains(dry, want) {
			t.Errorf("the dry run does not say %q:\n%s", want, dry)
		}
	}
	done := r.on("eipnet", "cleanup", "--force")
	for line := range strings.SplitSeq(dry, "\n") {
		for would, did := range map[string]string{"would remove ": "removed ", "would put back ": "put back "} {
			if item, is := strings.CutPrefix(line, would); is && !strings.Contains(done, did+item+"\n") {
				t.Errorf("%s%s; cleanup said\n%s", would, item, done)
			}
		}
	}
	if got := r.on("eipnet", "cleanup", "--force"); got != "nothing of eipnet is left\n" {
		t.Errorf("cleaning up again: %s", got)
	}
	r.leaves(t, "theirs", r.EIP("eth0").String()) // as the host does
	r.clean()
	r.docker("rm", "-f", "theirs")
	r.docker("network", "rm", "stock")
	after, err := r.HostState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")); diff != "" {
		t.Errorf("cleanup leaves something behind (-before +after):\n%s", diff)
	}
}

// tested returns the lines of the fenced block below "<!-- tested: NAME -->".
func tested(t *testing.T, page, name string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", page))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)<!-- tested: " + name + " -->\n```[a-z]*\n(.*?)```\n").FindStringSubmatch(string(text))
	if m == nil {
		t.Fatalf("%s has no block %s", page, name)
	}
	return strings.Split(strings.TrimSpace(m[1]), "\n")
}

// TestWhatIsLost: what docs/packet-path.md says about rules that are flushed or
// deleted, with the daemon alive and dead. Nothing ever leaves by a wrong NIC.
func TestWhatIsLost(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app0", "--label", "eip.nic=eth0", "-p", "8090:8080")
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.run(t, "free")
	r.allPinned("at first")

	t.Run("daemon alive, ruleset flushed", func(t *testing.T) {
		if !strings.Contains(r.daemon.Log(), "table_owned=true") {
			t.Skip("this kernel has no tables with a persistent owner")
		}
		r.on("nft", "flush", "ruleset")
		r.allPinned("after the flush")
	})
	t.Run("daemon alive, ip rules deleted", func(t *testing.T) {
		r.deleteRules()
		r.eventually("the rules to come back", func() error {
			if !strings.Contains(r.on("ip", "rule"), "\n5190:") {
				return errors.New("rule 5190 is missing")
			}
			return nil
		})
		r.allPinned("after the rules are back")
	})
	t.Run("daemon dead, ip rules deleted: lock 2", func(t *testing.T) {
		r.kill()
		r.resetSniffers()
		r.deleteRules()
		r.answers(r.url("eth0", 8090), r.EIP("eth0").String())
		r.leavesAs(t, "free", r.EIP("eth0").String())
		r.leavesAs(t, "app1", "")
		if out, err := r.SiteGet(t.Context(), r.url("eth1", 8090)); err == nil {
			t.Errorf("app1 answered %q", out)
		}
		for _, name := range []string{"guard_pinned", "guard_reply"} {
			if out := r.on("nft", "list", "counter", "inet", "eipnet", name); strings.Contains(out, "packets 0 ") {
				t.Errorf("the guard dropped nothing: %s", out)
			}
		}
		r.clean()
		r.serve()
		r.allPinned("after the start")
	})
	t.Run("daemon dead, ruleset flushed: lock 1", func(t *testing.T) {
		r.kill()
		r.resetSniffers()
		r.on("nft", "flush", "ruleset")
		for _, c := range []string{"app0", "app1", "free"} {
			r.leavesAs(t, c, "")
		}
		if out, err := r.SiteGet(t.Context(), r.url("eth0", 8090)); err == nil {
			t.Errorf("app0 answered %q", out)
		}
		r.clean()
		r.serve()
		r.allPinned("after the start")
	})
	t.Run("one container more while the daemon is dead", func(t *testing.T) {
		r.kill()
		if got := r.refused("run", "--rm", "--network", network, lab.Image, "get", "http://127.0.0.1/"); !strings.Contains(got, "eipnet.sock") {
			t.Errorf("docker said %q, which does not name the plugin's socket", got)
		}
		r.serve()
	})
}

// allPinned fails the test unless all containers of TestWhatIsLost live where they should.
func (r *rig) allPinned(when string) {
	r.t.Helper()
	for _, nic := range []string{"eth0", "eth1"} {
		r.answers(r.url(nic, 8090), r.EIP(nic).String())
	}
	r.leavesAs(r.t, "app0", r.EIP("eth0").String())
	r.leavesAs(r.t, "app1", r.EIP("eth1").String())
	r.leavesAs(r.t, "free", r.EIP("eth0").String())
	r.clean()
	if r.t.Failed() {
		r.t.Fatalf("that was %s", when)
	}
}

// leavesAs checks which address the site sees the container come from; none: it
// does not get there. Who should get there is given time.
func (r *rig) leavesAs(t *testing.T, container, want string) {
	t.Helper()
	got, err := r.exec(container, "get", siteIP)
	for end := time.Now().Add(patience); want != "" && late(err) && time.Now().Before(end); {
		got, err = r.exec(container, "get", siteIP)
	}
	if want == "" && err == nil || want != "" && got != want {
		t.Errorf("%s left as %q (%v), want %q", container, got, err, want)
	}
}

// late says that an error is a time-out, as a busy machine may be the reason of
// it; a refusal is an answer.
func late(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "deadline exceeded") || strings.Contains(err.Error(), "timeout"))
}

// TestLimits: what the README calls limits is so. A line that fails here is good
// news, and the README's line goes.
func TestLimits(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.run(t, "dns", "--label", "eip.nic=eth1", "--dns", lab.SiteAddr.String())
	if out := r.docker("ps", "--format", "{{.Ports}}", "--filter", "name=app1"); out != "" {
		t.Errorf("docker ps shows ports: %s", out)
	}
	asker := "eth1" // older engines ask from the container's namespace
	if engine() == pageEngine {
		asker = "eth0"
	}
	for container, nic := range map[string]string{"app1": asker, "dns": "eth1"} {
		r.Site.Reset()
		if out, err := r.exec(container, "lookup", lab.SiteName); err != nil {
			t.Errorf("%s: looking up a name: %q, %v", container, out, err)
		}
		if n := r.Site.Count(func(s lab.Seen) bool { return s.Proto == "dns" && s.Src.Addr() == r.EIP(nic) }); n == 0 {
			t.Errorf("%s: no query came from %s: %v", container, nic, r.Site.Seen())
		}
	}
	r.refused("run", "--rm", "--network", network, "-p", "8099:8080/sctp", lab.Image)
	// What is no limit: the networks' names decide by which one the container
	// leaves, and it leaves as its own EIP by the second one too.
	r.docker("network", "create", "a-second-one")
	r.docker("network", "connect", "a-second-one", "app1")
	r.leaves(t, "app1", r.EIP("eth1").String())
	r.clean()
}

// TestStrictWithoutDaemon: what is started on a stock network while the daemon
// is down is held where the network is strict, by label or by flag, and
// unpinned where it says eip.strict=false.
func TestStrictWithoutDaemon(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet}, "--strict-networks", "named")
	for _, n := range []struct{ name, label string }{{"named", "a=b"}, {"labelled", "eip.fallback=hold"}, {"loose", "eip.strict=false"}} {
		r.docker("network", "create", "--label", n.label, "-o", "com.docker.network.bridge.name=br-"+n.name, n.name)
	}
	r.eventually("the strict networks to be locked", func() error {
		rules := r.on("ip", "rule")
		for _, bridge := range []string{"br-named", "br-labelled"} {
			if !strings.Contains(rules, "iif "+bridge+" lookup 8199") {
				return fmt.Errorf("%s is not locked: %s", bridge, rules)
			}
		}
		return nil
	})
	r.kill()
	for _, n := range []string{"named", "labelled", "loose"} {
		r.docker("run", "-d", "--name", "on-"+n, "--network", n, lab.Image)
	}
	r.held(t, "on-named")
	r.held(t, "on-labelled")
	r.leavesAs(t, "on-loose", r.EIP("eth0").String())
	r.serve()
	for _, n := range []string{"named", "labelled", "loose"} {
		r.leaves(t, "on-"+n, r.EIP("eth0").String())
	}
	r.clean()
}

// TestLostState: where the state file was lost, a Problem names the network,
// nothing on it leaves by another way than before, and it can be made anew.
func TestLostState(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.docker("run", "-d", "--name", "app1", "--network", network, "--label", "eip.nic=eth1", "-p", "8090:8080", lab.Image)
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.kill()
	r.on("rm", "/var/lib/eipnet/state.db")
	r.serve()
	r.problem("network "+network, "does not remember")
	if got, err := r.exec("app1", "get", siteIP); err == nil && got != r.EIP("eth1").String() {
		t.Errorf("app1 left as %s", got)
	}
	r.docker("rm", "-f", "app1")
	r.docker("network", "rm", network)
	// Its old bridge goes when Docker's list no longer has the network.
	r.eventually("the network to be made anew", func() error {
		_, err := r.Docker(t.Context(), "network", "create", "-d", "eipnet", "--subnet", subnet, "-o", "com.docker.network.bridge.name="+bridge, network)
		return err
	})
	r.run(t, "app1", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.clean()
}

// deleteRules deletes all ip rules of ours.
func (r *rig) deleteRules() {
	r.t.Helper()
	r.on("sh", "-c", deleteRulesScript)
}

const deleteRulesScript = `for f in -4 -6; do
	ip $f rule | sed -n 's/^\([0-9]*\):.* proto 201.*/\1/p' | while read pref; do ip $f rule del pref $pref protocol 201; done
done`
