package pooler

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestRepointForms goes there and back with every form that an entry has; clients stay connected.
func TestRepointForms(t *testing.T) {
	tests := map[string]struct {
		raw      string
		restored bool // Undo gives the file back byte by byte
	}{
		"comments":    {"; the databases\n\n  # erp = host=nowhere\nerp = SOURCE pool_size=4\n;end\n", true},
		"quoted":      {"erp = host='127.0.0.1' SOURCE connect_query='select ''host=x'''\n", true},
		"own section": {"[users]\npostgres = pool_mode=transaction\n[databases]\nerp = SOURCE\nother = SOURCE\n", true},
		"star":        {"other = SOURCE\n* = SOURCE pool_size=4\n", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, testpg.BouncerOptions{Raw: tt.raw})
			before := f.file()
			info, err := os.Stat(f.bouncer.DatabasesFile)
			if err != nil {
				t.Fatal(err)
			}
			conn := f.connect(f.bouncer.URL("erp", "postgres"))
			if diff := cmp.Diff(f.nameAt(f.source), f.query(conn)); diff != "" {
				t.Fatalf("before: %s", diff)
			}
			g := Group{f.p}
			if err := g.Pause(f.ctx); err != nil {
				t.Fatal(err)
			}
			changes, err := g.Repoint(f.ctx)
			if err := errors.Join(err, g.Resume(f.ctx)); err != nil {
				t.Fatal(err)
			}
			f.wantAt(f.target)
			if diff := cmp.Diff(f.nameAt(f.target), f.query(conn)); diff != "" {
				t.Errorf("after: %s", diff)
			}
			now, err := os.Stat(f.bouncer.DatabasesFile)
			if err != nil || now.Mode() != info.Mode() || !cmp.Equal(owner(now), owner(info)) {
				t.Errorf("mode and owner were %v %v, are %v %v: %v", info.Mode(), owner(info), now.Mode(), owner(now), err)
			}
			err = errors.Join(g.Pause(f.ctx), g.Undo(f.ctx, changes), g.Undo(f.ctx, changes), g.Resume(f.ctx))
			if err != nil {
				t.Fatal(err)
			}
			f.wantAt(f.source)
			if diff := cmp.Diff(f.nameAt(f.source), f.query(conn)); diff != "" {
				t.Errorf("pointed back: %s", diff)
			}
			restored := f.file()
			for _, url := range []string{f.target, f.source} { // the switch again, and the rollback's
				if err := g.Apply(f.ctx, changes); err != nil {
					t.Fatal(err)
				}
				f.wantAt(url)
				changes = Reverse(changes)
			}
			if diff := cmp.Diff(restored, f.file()); diff != "" {
				t.Errorf("the file after a rollback: %s", diff)
			}
			if diff := cmp.Diff(before, f.file()); tt.restored != (diff == "") {
				t.Errorf("the file: %s", diff)
			}
		})
	}
}

// TestPoolerThatCannotReadItsFile: a file with a mistake elsewhere keeps it, and nothing is moved.
func TestPoolerThatCannotReadItsFile(t *testing.T) {
	f := newFixture(t, testpg.BouncerOptions{})
	broken := "bad = hosst=x\n" + f.file()
	if err := os.WriteFile(f.bouncer.DatabasesFile, []byte(broken), 0o640); err != nil {
		t.Fatal(err)
	}
	_, err := f.p.Repoint(f.ctx)
	if err == nil || !strings.Contains(err.Error(), "RELOAD") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(broken, f.file()); diff != "" {
		t.Errorf("the file: %s", diff)
	}
	f.wantAt(f.source)
	conn := f.connect(f.bouncer.URL("erp", "postgres"))
	if diff := cmp.Diff(f.nameAt(f.source), f.query(conn)); diff != "" {
		t.Error(diff)
	}
}

// TestEditByAHuman: one elsewhere is kept, one of our entry stops Undo, and nothing is overwritten.
func TestEditByAHuman(t *testing.T) {
	f := newFixture(t, testpg.BouncerOptions{})
	c, err := f.p.Repoint(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	edited := f.file() + "report = " + f.words(f.source) + "\n"
	if err := os.WriteFile(f.bouncer.DatabasesFile, []byte(edited), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := f.p.Undo(f.ctx, c); err != nil || !strings.Contains(f.file(), "\nreport = ") {
		t.Errorf("%v: %s", err, f.file())
	}
	f.wantAt(f.source)
	theirs := strings.Replace(f.file(), "erp = host=127.0.0.1", "erp = host=localhost", 1)
	if err := os.WriteFile(f.bouncer.DatabasesFile, []byte(theirs), 0o640); err != nil {
		t.Fatal(err)
	}
	hostOnly := c
	hostOnly.Keys = []Replace{{Key: "host", Before: "host=127.0.0.1", After: "host=127.0.0.2"}}
	if err := f.p.Apply(f.ctx, hostOnly); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(theirs, f.file()); diff != "" {
		t.Errorf("the file: %s", diff)
	}
}

// TestGroupIsAllOrNone: one pooler that cannot leaves none paused and none repointed.
func TestGroupIsAllOrNone(t *testing.T) {
	a := newFixture(t, testpg.BouncerOptions{})
	b := newFixture(t, testpg.BouncerOptions{})
	b.cfg.Name, b.cfg.Timeout = "second", 300*time.Millisecond
	b.p = b.pooler(b.cfg)
	g := Group{a.p, b.p}
	long := b.connect(b.bouncer.URL("erp", "postgres"))
	if _, err := long.Exec(b.ctx, "BEGIN; SELECT 1"); err != nil {
		t.Fatal(err)
	}
	err := g.Pause(a.ctx)
	if engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(err.Error(), "pooler second") || strings.Contains(err.Error(), "pooler main") {
		t.Errorf("error %v", err)
	}
	a.wantAt(a.source)
	b.wantAt(b.source)
	if _, err := long.Exec(b.ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := g.Pause(a.ctx); err != nil {
		t.Fatal(err)
	}
	before := a.file()
	changes, err := g.Plan()
	if err != nil {
		t.Fatal(err)
	}
	broken := b.file() + "bad = hosst=x\n"
	broken = "bad = hosst=x\n" + broken
	if err := os.WriteFile(b.bouncer.DatabasesFile, []byte(broken), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := g.Apply(a.ctx, changes); err == nil || !strings.Contains(err.Error(), "pooler second") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{before, broken}, []string{a.file(), b.file()}); diff != "" {
		t.Errorf("files: %s", diff)
	}
	if err := b.bouncer.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := g.Resume(a.ctx); err == nil || strings.Contains(err.Error(), "pooler main") {
		t.Errorf("resume with one gone: %v", err)
	}
	a.wantAt(a.source)
	if _, err := g.of(Change{Pooler: "gone"}); err == nil {
		t.Error("a change of no pooler of ours was accepted")
	}
}

func codes(findings []engine.Finding) string {
	var all []string
	for _, f := range findings {
		all = append(all, fmt.Sprintf("%s %s", f.Code, f.Severity))
	}
	return strings.Join(all, ", ")
}

func TestCheck(t *testing.T) {
	f := newFixture(t, testpg.BouncerOptions{Raw: "erp = SOURCE pool_mode=session\nerp_ro = SOURCE\n", Settings: map[string]string{"query_wait_timeout": "3"}, Password: "c4n4ry"})
	elsewhere := t.TempDir() + "/other.ini"
	if err := os.WriteFile(elsewhere, []byte("erp = host=elsewhere\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*Config)
		want   string
	}{
		"as it is":         {func(*Config) {}, "PLR100 info, PLR106 warning, PLR107 warning, PLR108 warning"},
		"may only look":    {func(c *Config) { c.Admin = f.bouncer.Console(testpg.BouncerStats) }, "PLR100 info, PLR103 error, PLR106 warning, PLR107 warning, PLR108 warning"},
		"no console":       {func(c *Config) { c.Admin = f.bouncer.URL("erp", "postgres") }, "PLR102 error"},
		"nobody there":     {func(c *Config) { c.Admin = "postgresql://u:c4n4ry@127.0.0.1:1/pgbouncer?sslmode=disable" }, "PLR101 error"},
		"wrong password":   {func(c *Config) { c.Admin = strings.Replace(c.Admin, "c4n4ry", "c4n4ry-x", 1) }, "PLR101 error"},
		"no such database": {func(c *Config) { c.Database = "crm" }, "PLR100 info, PLR108 warning, PLR110 error"},
		"not its file":     {func(c *Config) { c.ConfigFile = elsewhere }, "PLR100 info, PLR106 warning, PLR107 warning, PLR108 warning, PLR111 error"},
		"no file":          {func(c *Config) { c.ConfigFile = "/nowhere/x.ini" }, "PLR100 info, PLR106 warning, PLR107 warning, PLR108 warning, PLR110 error"},
		"own steps":        {func(c *Config) { c.ConfigFile, c.Connect, c.Database = "", "", "crm" }, "PLR100 info, PLR108 warning, PLR104 warning"},
		"there already":    {func(c *Config) { c.Connect = f.words(f.source) }, "PLR100 info, PLR106 warning, PLR107 warning, PLR108 warning, PLR113 warning"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := f.cfg
			tt.change(&cfg)
			found, err := f.pooler(cfg).Check(f.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, codes(found)); diff != "" {
				t.Errorf("%s\n%+v", diff, found)
			}
			if strings.Contains(fmt.Sprintf("%+v", found), "c4n4ry") {
				t.Errorf("the password is in %+v", found)
			}
		})
	}
	second := f.cfg
	second.Database = "erp_ro"
	if found, err := (Group{f.p, f.pooler(second)}).Check(f.ctx); err != nil || strings.Contains(codes(found), "PLR107") {
		t.Errorf("both are driven: %v %s", err, codes(found))
	}
	if err := f.p.Pause(f.ctx, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if found, err := f.p.Check(f.ctx); err != nil || !strings.Contains(codes(found), "PLR105 error") {
		t.Errorf("paused: %v %s", err, codes(found))
	}
	if err := f.p.Resume(f.ctx); err != nil {
		t.Fatal(err)
	}
}
