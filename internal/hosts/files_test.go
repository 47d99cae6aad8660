package hosts

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoFile: what would never end, or is far too long, is not read.
func TestNoFile(t *testing.T) {
	k := New(Options{Dir: t.TempDir()})
	fifo, long := filepath.Join(k.o.Dir, "fifo.json"), filepath.Join(k.o.Dir, "long.json")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(long, bytes.Repeat([]byte(" "), maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(k.o.Dir, "zero.json")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"fifo.json": "no regular file", "zero.json": "no regular file", "long.json": "more than"} {
		if _, err := k.read(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// TestBadFile: what is wrong with a file is told by line or field, with what is expected there.
func TestBadFile(t *testing.T) {
	k := New(Options{Dir: t.TempDir()})
	const good = `{"nic": "eth1", "address": "172.29.0.100"`
	for text, want := range map[string][]string{
		"":                                         {"is empty", form},
		"\n" + good + "\n":                         {"line 2: the file ends within", form},
		"{\n\"nic\": eth1}":                        {"line 2: invalid character", form},
		"{\n\"nic\": \"eth1\",\n\"address\" ":      {"line 3: the file ends"},
		"{\"nic\":\n1}":                            {`line 2: nic: there stands a JSON number`, form},
		"[]":                                       {`line 1: the whole: there stands a JSON array`},
		good + ",\n\"publish\": \"80:80\"}":        {`line 2: publish: there stands a JSON string`, form},
		good + "}\n" + good + "}":                  {"line 2: something follows"},
		good + `, "ip": "1.2.3.4"}`:                {`unknown field "ip"`, form},
		`{"address": "172.29.0.100"}`:              {"nic: which NIC?"},
		`{"nic": "eth1"}`:                          {`address: "" is none`, "as 172.29.0.100"},
		`{"nic": "eth1", "address": "web"}`:        {`address: "web" is none`, "as 172.29.0.100"},
		good + `, "publish": ["80"]}`:              {`publish: port "80": want [ADDRESS:]HOSTPORT:PORT`},
		good + `, "options": {"eip.nic": "eth1"}}`: {"options: eip.nic is what nic says"},
	} {
		if err := os.WriteFile(filepath.Join(k.o.Dir, "web.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := k.read("web.json")
		if err == nil {
			t.Errorf("%s\nis accepted", text)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s\nsays %q, want %q", text, err, w)
			}
		}
	}
}
