package examples_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A password shows nowhere, however it was given: by a URL in a variable, the environment, a
// password file, a service file or a command.
func TestPasswordsShowNowhere(t *testing.T) {
	canary := "canary-" + random()
	source := testpg.StartT(t, testpg.Options{Major: 15, Auth: "scram", Password: canary})
	target := testpg.StartT(t, testpg.Options{Major: newest})
	watch := watchProcesses(t, canary)
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	for name, channel := range map[string]struct {
		source string            // the source block's arguments
		files  map[string]string // beside the runbook, 0600
		env    func(u *url.URL, dir string) []string
	}{
		"url variable": {source: "url = var.source_url", env: func(u *url.URL, _ string) []string { return []string{"SOURCE_URL=" + u.String()} }},
		"environment": {source: "inherit_env = true", env: func(u *url.URL, _ string) []string {
			return []string{"SOURCE_URL=unused", "PGHOST=" + u.Hostname(), "PGPORT=" + u.Port(), "PGUSER=" + u.User.Username(), "PGPASSWORD=" + canary, "PGDATABASE=" + strings.TrimPrefix(u.Path, "/"), "PGSSLMODE=disable"}
		}},
		"passfile": {source: "url = var.source_url", files: map[string]string{"passfile": "*:*:*:*:" + canary}, env: func(u *url.URL, dir string) []string {
			return []string{"SOURCE_URL=" + plain(u), "PGPASSFILE=" + filepath.Join(dir, "passfile")}
		}},
		"service": {source: `service = "old"`, files: map[string]string{"service": ""}, env: func(u *url.URL, dir string) []string {
			text := fmt.Sprintf("[old]\nhost=%s\nport=%s\ndbname=%s\nuser=%s\npassword=%s\nsslmode=disable\n", u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/"), u.User.Username(), canary)
			if err := os.WriteFile(filepath.Join(dir, "service"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"SOURCE_URL=unused", "PGSERVICEFILE=" + filepath.Join(dir, "service")}
		}},
		"password command": {source: "url = var.source_url\n  password_command = [\"cat\", \"token\"]", files: map[string]string{"token": canary}, env: func(u *url.URL, _ string) []string {
			return []string{"SOURCE_URL=" + plain(u)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			db := "db_" + random()
			admin := withPassword(t, source.URL("postgres", source.Superuser), canary)
			script(t, admin, "CREATE DATABASE "+db)
			script(t, target.ConnString(), "CREATE DATABASE "+db)
			sourceURL := withPassword(t, testpg.Adopt(t, source, db), canary)
			script(t, sourceURL, "CREATE TABLE public.item (id int PRIMARY KEY); INSERT INTO public.item SELECT generate_series(1, 100)")
			u, err := url.Parse(sourceURL)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			secrets := map[string]bool{}
			for file, text := range channel.files {
				secrets[filepath.Join(dir, file)] = true
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			text := fmt.Sprintf("runbook \"canary\" {}\nvariable \"source_url\" {\n  sensitive = true\n  default   = env(\"SOURCE_URL\")\n}\nsource {\n  %s\n}\ntarget { url = %q }\ntables { include = [\"public.*\"] }\n",
				channel.source, testpg.Adopt(t, target, db))
			if err := os.WriteFile(filepath.Join(dir, "canary.runbook.hcl"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			p := &program{t: t, path: path, dir: dir, runbook: "canary.runbook.hcl", env: append(channel.env(u, dir),
				"PATH="+clients(t)+":"+os.Getenv("PATH"), "HOME="+t.TempDir(), "PGRUNBOOK_PG_BIN_DIRS="+clients(t), "PGRUNBOOK_INPUT=0")}
			p.want(0, "plan", "RUNBOOK", "--out", "canary.plan")
			p.want(0, "show", "canary.plan", "--json")
			p.want(0, "apply", "canary.plan")
			p.want(0, "status", "RUNBOOK", "--json")
			secretAbsent(t, p, canary, "the journal", contents(t, target.URL(db, target.Superuser), "pgrunbook")+contents(t, sourceURL, "pgrunbook"))
			script(t, admin, "ALTER DATABASE "+db+" RENAME TO gone_"+db) // every error, too
			p.want(1, "verify", "RUNBOOK", "--json")
			script(t, admin, "ALTER DATABASE gone_"+db+" RENAME TO "+db)
			secretAbsent(t, p, canary, "the output", p.output.String())
			for _, file := range files(t, dir) {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if !secrets[file] {
					secretAbsent(t, p, canary, file, string(text))
				}
			}
		})
	}
	watch()
}

// plain is a URL without its password.
func plain(u *url.URL) string {
	c := *u
	c.User = url.User(u.User.Username())
	return c.String()
}

func withPassword(t *testing.T, raw, password string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(u.User.Username(), password)
	return u.String()
}
