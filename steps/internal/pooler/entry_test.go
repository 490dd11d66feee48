package pooler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func planned(t *testing.T, text, database, connect string) (Change, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "databases.ini")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Name: "main", Admin: "host=127.0.0.1 dbname=pgbouncer", Database: database, ConfigFile: path, Connect: connect})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Plan()
	return c, path, err
}

// TestEntryForms: what is written, and that taking it back leaves the text as it was.
func TestEntryForms(t *testing.T) {
	const connect = "host=new port=7000"
	tests := map[string]struct{ text, connect, want string }{
		"plain":             {"erp = host=old port=5432 pool_size=9\n", connect, "erp = host=new port=7000 pool_size=9\n"},
		"only in the file":  {"; erp = host=x\n\n[databases]\nerp=host=old\n[pgbouncer]\nerp = host=no\n", "host=new", "; erp = host=x\n\n[databases]\nerp=host=new\n[pgbouncer]\nerp = host=no\n"},
		"after its section": {"[databases] erp = port=1\t \n", "port=2", "[databases] erp = port=2\t \n"},
		"no port":           {"erp = host=old dbname=e\n", connect, "erp = host=new dbname=e port=7000\n"},
		"port kept":         {"erp = host=old port=6000\n", "host=new", "erp = host=new port=6000\n"},
		"empty":             {"erp =\nother = host=old\n", connect, "erp = host=new port=7000\nother = host=old\n"},
		"no line end":       {"erp = host=old", connect, "erp = host=new port=7000"},
		"windows":           {"erp = host=old port=1\r\nb = host=b\r\n", connect, "erp = host=new port=7000\r\nb = host=b\r\n"},
		"quotes":            {"erp = host='old' connect_query='select '';host=x''' port = '1'\n", connect, "erp = host=new connect_query='select '';host=x''' port=7000\n"},
		"password":          {"erp = user=u password=' host=evil' host=old\n", "host=new user=v", "erp = user=v password=' host=evil' host=new\n"},
		"twice the key":     {"erp = host=a host=b\n", "host=new", "erp = host=a host=new\n"},
		"quoted name":       {`"erp" = host=old` + "\n'b' = host=b\n", "host=new", `"erp" = host=new` + "\n'b' = host=b\n"},
		"odd values":        {"erp = host=old\n", "host=new dbname='it''s a name'", "erp = host=new dbname='it''s a name'\n"},
		"includes stay":     {"%include /etc/x.ini\n# c\nerp = host=old\n%include y\n", "host=new", "%include /etc/x.ini\n# c\nerp = host=new\n%include y\n"},
		"already there":     {"erp = port='7000' host=new\n", connect, "erp = port='7000' host=new\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, _, err := planned(t, tt.text, "erp", tt.connect)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.edit([]byte(tt.text), true)
			if diff := cmp.Diff(tt.want, string(got)); err != nil || diff != "" {
				t.Fatalf("%v %s", err, diff)
			}
			if again, err := c.edit(got, true); err != nil || string(again) != string(got) {
				t.Errorf("a second time: %v %q", err, again)
			}
			back, err := c.edit(got, false)
			// A value added to an empty entry leaves a space behind the equals sign, no more.
			if diff := cmp.Diff(tt.text, strings.Replace(string(back), "erp = \n", "erp =\n", 1)); err != nil || diff != "" {
				t.Errorf("taken back: %v %s", err, diff)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	tests := map[string]struct{ text, database, connect, want string }{
		"nothing there":       {"a = host=b\n", "erp", "host=n", "no entry"},
		"two entries":         {"erp = host=b\nerp = host=c\n", "erp", "host=n", "2 entries"},
		"broken line":         {"erp = host=b\nsecret word\n", "erp", "host=n", "line 2"},
		"broken section":      {"[databases\nerp = host=b\n", "erp", "host=n", "line 1"},
		"broken entry":        {"erp = host\n", "erp", "host=n", "key=value"},
		"endless quotes":      {"erp = host='b\n", "erp", "host=n", "quotes"},
		"port is no number":   {"erp = port=x\n", "erp", "host=n", "port"},
		"a user is added":     {"erp = host=b\n", "erp", "host=n user=u", "user"},
		"star with odd names": {"* = host=b\n", "my db", "host=n", "quotes"},
	}
	for name, tt := range tests {
		_, _, err := planned(t, tt.text, tt.database, tt.connect)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want an error with %q", name, err, tt.want)
		}
	}
}

func TestStarGetsAnEntryOfItsOwn(t *testing.T) {
	const text = "[databases]\nother = host=o\n  * = host=old pool_size=3 ; not a comment=x\n"
	if _, _, err := planned(t, text, "erp", "host=new"); err == nil {
		t.Fatal("a value that is no key=value was accepted")
	}
	const good = "[databases]\nother = host=o\n  * = host=old pool_size=3\n"
	c, _, err := planned(t, good, "erp", "host=new port=7")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Place{Host: "old", Port: 5432, Database: "erp"}); c.From != want || !c.Inserted {
		t.Errorf("from %v, inserted %v", c.From, c.Inserted)
	}
	forth, err := c.edit([]byte(good), true)
	if err != nil || !strings.Contains(string(forth), "  erp = host=new pool_size=3 port=7\n* = host=old pool_size=3\n") {
		t.Fatalf("%v %s", err, forth)
	}
	back, err := c.edit(forth, false)
	if err != nil || !strings.Contains(string(back), "erp = host=old pool_size=3\n* = host=old pool_size=3\n") {
		t.Errorf("%v %s", err, back)
	}
	if never, err := c.edit([]byte(good), false); err != nil || string(never) != good {
		t.Errorf("taken back before it was written: %v %s", err, never)
	}
}

func TestSomebodyElsesEntryIsLeftAlone(t *testing.T) {
	c, path, err := planned(t, "erp = host=old port=1\nb = host=b\n", "erp", "host=new port=2")
	if err != nil {
		t.Fatal(err)
	}
	for _, theirs := range []string{"erp = host=third port=1\n", "erp = port=1\n", "b = host=b\n", "erp = host=old\nerp = host=old\n"} {
		for _, forth := range []bool{true, false} {
			if got, err := c.edit([]byte(theirs), forth); err == nil {
				t.Errorf("%q became %q", theirs, got)
			}
		}
	}
	// An edit elsewhere in the file, between our reading and our rename, is kept.
	edits := 0
	err = rewrite(t.Context(), path, func(text []byte) ([]byte, error) {
		if edits++; edits == 1 {
			if err := os.WriteFile(path, []byte(string(text)+"c = host=c\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return c.edit(text, true)
	})
	got, _ := os.ReadFile(path)
	if err != nil || edits != 2 || string(got) != "erp = host=new port=2\nb = host=b\nc = host=c\n" {
		t.Errorf("%v after %d edits: %q", err, edits, got)
	}
	// One that never ends is named, and the file is theirs.
	err = rewrite(t.Context(), path, func(text []byte) ([]byte, error) {
		if err := os.WriteFile(path, []byte(string(text)+"#\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return c.edit(text, false)
	})
	got, _ = os.ReadFile(path)
	if err == nil || !strings.HasPrefix(string(got), "erp = host=new port=2\n") || !strings.HasSuffix(string(got), "#\n") {
		t.Errorf("%v: %q", err, got)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("files left: %v %v", left, err)
	}
}

func TestRewriteKeepsModeAndLink(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.ini"), filepath.Join(dir, "link.ini")
	if err := os.WriteFile(real, []byte("a"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(real, 0o604); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.ini", link); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(t.Context(), link, func([]byte) ([]byte, error) { return []byte("b"), nil }); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link: %v %v", info, err)
	}
	info, err = os.Stat(real)
	if text, _ := os.ReadFile(real); err != nil || info.Mode().Perm() != 0o604 || string(text) != "b" {
		t.Errorf("the file: %v %v %q", info, err, text)
	}
}

func TestNewRefuses(t *testing.T) {
	const canary = "c4n4ry"
	base := Config{Name: "main", Admin: "host=/x dbname=pgbouncer", Database: "erp", ConfigFile: "f", Connect: "host=n"}
	tests := map[string]func(*Config){
		"star":             func(c *Config) { c.Database = "*" },
		"console":          func(c *Config) { c.Database = "pgbouncer" },
		"half":             func(c *Config) { c.Connect = "" },
		"password":         func(c *Config) { c.Connect = "host=n password=" + canary },
		"url":              func(c *Config) { c.Connect = "postgresql://u:" + canary + "@h/d" },
		"twice":            func(c *Config) { c.Connect = "host=n host=m" },
		"no port":          func(c *Config) { c.Connect = "port=" + canary },
		"line break":       func(c *Config) { c.Connect = "host='a\nb = host=c'" },
		"admin":            func(c *Config) { c.Admin = "host=/x passwort=" + canary },
		"admin is no list": func(c *Config) { c.Admin = "host=/x password='" + canary },
	}
	if _, err := New(base); err != nil {
		t.Fatal(err)
	}
	for name, change := range tests {
		cfg := base
		change(&cfg)
		if _, err := New(cfg); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
