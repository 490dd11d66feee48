package histories_test

import (
	"context"
	"regexp"
	"slices"
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
		a, b := w.dump(w.source), w.forgiven(w.dump(w.target))
		if a != b {
			w.Errorf("definitions differ:\n%s", difference(a, b))
		}
	}
}

// broken is how the program names a foreign key that rows of the source break.
var broken = regexp.MustCompile(`foreign_key (\S+) on \S+ is broken by rows of the source and stays NOT VALID`)

// forgiven takes NOT VALID off the keys that were named so: only writers in the replica role can
// break one.
func (w *world) forgiven(dump string) string {
	for _, m := range broken.FindAllStringSubmatch(w.log.String(), -1) {
		if !w.h.replica() {
			w.Errorf("%s, and nobody wrote in the replica role", m[0])
		}
		dump = regexp.MustCompile(`(ADD CONSTRAINT `+regexp.QuoteMeta(m[1])+` .*) NOT VALID;`).ReplaceAllString(dump, "$1;")
	}
	return dump
}

// replica says whether any writer skips foreign keys.
func (h History) replica() bool {
	return slices.ContainsFunc(h.Writers, func(w Writer) bool { return slices.ContainsFunc(w.Ops, func(o Op) bool { return o.Replica }) })
}

// ours are definitions of ours, and what the target's major writes in another way.
var ours = regexp.MustCompile(`(?m)^(-- Name: .*pgrunbook_(gate|capture).*|CREATE TRIGGER "?!?pgrunbook_.*|ALTER TABLE .* ENABLE ALWAYS TRIGGER "?!?pgrunbook_.*|-- Name: EXTENSION.*|--)$\n?`)

// notNull are constraints that have names since 18, where a child states what it inherits.
var notNull = regexp.MustCompile(`(?m)^    CONSTRAINT \S+ NOT NULL \S+?,?\n`)

// inherited are such names in a column's own line: a partition that was made as one has its parent's.
var inherited = regexp.MustCompile(`(?m)^(    .+) CONSTRAINT \S+ NOT NULL`)

func (w *world) dump(url string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text, err := testpg.SchemaDump(ctx, url, "pgrunbook")
	w.must(err)
	text = notNull.ReplaceAllString(ours.ReplaceAllString(text, ""), "")
	text = inherited.ReplaceAllString(text, "$1 NOT NULL")
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
