package histories_test

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// judge looks at the side where the clients ended.
func (w *world) judge() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, cond(w.owner == 0, w.source, w.target))
	w.must(err)
	defer func() { _ = conn.Close(ctx) }()
	final, err := lists(ctx, conn)
	w.must(err)
	rows, err := conn.Query(ctx, "SELECT id, balance FROM h.account")
	w.must(err)
	balances := map[int]int64{}
	var id int
	var balance int64
	_, err = pgx.ForEachRow(rows, []any{&id, &balance}, func() error { balances[id] = balance; return nil })
	w.must(err)
	for _, s := range w.book.check(final, balances) {
		w.Errorf("at the end: %s", s)
	}
	if err := w.sides.Err(); err != nil {
		w.Errorf("%v", err)
	}
	if w.owner == 1 {
		a, b := w.dump(w.source), w.dump(w.target)
		if a != b {
			w.Errorf("definitions differ:\n%s", difference(a, b))
		}
	}
}

// ours are definitions of ours, and what the target's major writes in another way.
var ours = regexp.MustCompile(`(?m)^(-- Name: .*pgrunbook_(gate|capture).*|CREATE TRIGGER "?!?pgrunbook_.*|ALTER TABLE .* ENABLE ALWAYS TRIGGER "?!?pgrunbook_.*|-- Name: EXTENSION.*|--)$\n?`)

// notNull are constraints that have names since 18, where a child states what it inherits.
var notNull = regexp.MustCompile(`(?m)^    CONSTRAINT \S+ NOT NULL \S+?,?\n`)

func (w *world) dump(url string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text, err := testpg.SchemaDump(ctx, url, "pgrunbook")
	w.must(err)
	text = notNull.ReplaceAllString(ours.ReplaceAllString(text, ""), "")
	text = regexp.MustCompile(`,\n`).ReplaceAllString(text, "\n") // after the last column that is left
	return regexp.MustCompile(`\n\n+`).ReplaceAllString(text, "\n")
}

// difference shows lines of one text that are not in the other.
func difference(a, b string) string {
	var out []string
	minus := func(sign, x, y string) {
		have := map[string]int{}
		for l := range strings.Lines(y) {
			have[l]++
		}
		for l := range strings.Lines(x) {
			if have[l]--; have[l] < 0 && len(out) < 30 {
				out = append(out, sign+" "+strings.TrimRight(l, "\n"))
			}
		}
	}
	minus("-", a, b)
	minus("+", b, a)
	return strings.Join(out, "\n")
}

func (w *world) sql(url, text string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	w.must(err)
	defer func() { _ = conn.Close(ctx) }()
	if _, err = conn.PgConn().Exec(ctx, text).ReadAll(); err != nil {
		w.Fatalf("%v\n%s", err, text)
	}
}
