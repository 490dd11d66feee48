package docs

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/demo"
)

const readme = root + "/README.md"

// TestReadme runs the migration that README.md shows and compares its blocks; -update rewrites them.
func TestReadme(t *testing.T) {
	p := newPair(t, plainProgram)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- customers(ctx, p.sourceURL) }()

	plan := p.want(0, "plan", "--out", "shop.plan", p.file)
	apply := p.want(0, "apply", "shop.plan", "--approve", "go", "--by", "anna")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	page := read(t, readme)
	for name, text := range map[string]string{
		"runbook": fence("hcl", read(t, "testdata/shop.runbook.hcl")),
		"plan":    fence("text", "$ pgrunbook plan --out shop.plan shop.runbook.hcl\n"+p.tidy(plan)),
		"apply":   fence("text", "$ pgrunbook apply shop.plan --approve go --by anna\n"+p.tidy(apply)),
	} {
		old, err := block(page, name)
		if err != nil {
			t.Fatal(err)
		}
		if shape(old) == shape(text) && (name != "runbook" || old == text) {
			continue
		}
		if !*update {
			t.Errorf("block %s of README.md is not what the program prints; run make docs. Now it is:\n%s", name, text)
			continue
		}
		page = strings.Replace(page, marked(name, old), marked(name, text), 1)
	}
	if *update {
		if err := os.WriteFile(readme, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// customers is an application that writes until it is told that the database has moved.
func customers(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for i := 0; ctx.Err() == nil; i++ {
		if _, err := conn.Exec(ctx, "UPDATE shop.customer SET name = $1 WHERE id = $2", fmt.Sprint("renamed ", i), 1+i%5000); err != nil {
			if state := sqlState(err); state == "25006" || state == "57P01" || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("the application's write: %w", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// tidy leaves out where the throw-away servers listen, and that nobody is on the way to them.
func (p *pair) tidy(out string) string {
	return strings.NewReplacer(
		p.source.Addr(), "old.example.net:5432", p.target.Addr(), "new.example.net:5432", p.dir+"/", "", "sslmode disable on loopback", "sslmode verify-full",
	).Replace(out)
}

func fence(kind, text string) string {
	return "```" + kind + "\n" + strings.TrimRight(text, "\n") + "\n```"
}

// block gives what stands between <!-- name --> and <!-- /name -->.
func block(page, name string) (string, error) {
	_, rest, found := strings.Cut(page, "<!-- "+name+" -->\n")
	text, _, closed := strings.Cut(rest, "\n<!-- /"+name+" -->")
	if !found || !closed {
		return "", fmt.Errorf("README.md has no block %s between its markers", name)
	}
	return text, nil
}

var (
	digestText = regexp.MustCompile(`sha256:[0-9a-f]+`)
	runText    = regexp.MustCompile(`run [a-z0-9]{8}\b`)
	serverText = regexp.MustCompile(`(PostgreSQL \d+)[^\n]*`)
	figureText = regexp.MustCompile(`\d[\d.:]*( ?(ms|µs|s|m|h|k|M|B|KiB|MiB|GiB)\b)*(\d+[ms]+)*`)
	// How many of these lines there are, and what they say, hangs on how fast the machine is.
	loose = regexp.MustCompile(`(INFO|WARN) (the target is|pass of|freeze attempt|freeze proof|freeze hold|freeze undone|waiting|\d+ sessions? on the|shop\.\w+: \d+ rows equal|copy: \d|constraints: (\d|make))`)
)

// shape is what a text says beside its figures.
func shape(text string) string {
	var list []string
	for line := range strings.Lines(text) {
		if loose.MatchString(line) {
			continue
		}
		line = serverText.ReplaceAllString(line, "$1")
		line = digestText.ReplaceAllString(runText.ReplaceAllString(line, "run R"), "sha256:D")
		line = strings.Join(strings.Fields(figureText.ReplaceAllString(line, "N")), " ")
		if line != "" && !slices.Contains(list, line) {
			list = append(list, line)
		}
	}
	return strings.Join(strings.Fields(strings.Join(list, " ")), " ")
}

// TestReadmeDemo holds the demo's closing line in README.md to its form; the figures are of a run.
func TestReadmeDemo(t *testing.T) {
	line, err := block(read(t, readme), "demo")
	if err != nil {
		t.Fatal(err)
	}
	want := fence("text", demo.Result{Acknowledged: 1, Blocked: time.Millisecond}.String())
	if shape(line) != shape(want) {
		t.Errorf("README.md shows as the demo's last line\n%s\nit is of the form\n%s", line, want)
	}
}

func marked(name, text string) string {
	return "<!-- " + name + " -->\n" + text + "\n<!-- /" + name + " -->"
}
