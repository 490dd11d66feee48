package dump

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Item is one definition of a database: its kind, its name, which is unique within the kind and the
// same on every server, and what it is, as a digest.
type Item struct {
	Class, OID uint32
	Rel        uint32 // the relation that it belongs to, itself included; 0 for none
	Kind       ItemKind
	Name       string
	On         string // the quoted relation or domain of what has no name of its own
	Def        string
	NotValid   bool // a check that old rows may break: FlipStatements makes it
}

// ItemKind groups definitions by what can be done about a difference.
type ItemKind string

// The kinds of items.
const (
	ItemSchema      ItemKind = "schema"
	ItemTable       ItemKind = "table"
	ItemPartition   ItemKind = "partition"
	ItemView        ItemKind = "view"
	ItemMatview     ItemKind = "materialized view"
	ItemSequence    ItemKind = "sequence"
	ItemFunction    ItemKind = "function"
	ItemEnum        ItemKind = "enum"
	ItemDomain      ItemKind = "domain"
	ItemType        ItemKind = "type"
	ItemCheck       ItemKind = "check constraint"
	ItemDomainCheck ItemKind = "domain constraint"
	ItemConstraint  ItemKind = "constraint"
	ItemForeignKey  ItemKind = "foreign key"
	ItemIndex       ItemKind = "index"
	ItemTrigger     ItemKind = "trigger"
	ItemRule        ItemKind = "rule"
	ItemPolicy      ItemKind = "policy"
	ItemStatistics  ItemKind = "statistics"
	ItemOther       ItemKind = "object" // operators, casts, collations, text search, foreign servers...
	ItemExtension   ItemKind = "extension"
	ItemComment     ItemKind = "comment"
	ItemOwner       ItemKind = "owner"
	ItemGrant       ItemKind = "grant"
	ItemOption      ItemKind = "options"
	ItemSetting     ItemKind = "setting"
)

// ID names an item within its database.
func (i Item) ID() string {
	if i.On != "" {
		return string(i.Kind) + " " + i.Name + " on " + i.On
	}
	return string(i.Kind) + " " + i.Name
}

// Inventory reads every definition of a database but those of PostgreSQL, of extensions and of ours.
// With a scope, what it excludes and what that drags along is left out.
func Inventory(ctx context.Context, conn *pgx.Conn, s *scope.Scope) (map[string]Item, error) {
	major, err := majorOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	gone := map[objectID]bool{}
	if s != nil {
		if gone, _, err = dependents(ctx, conn, s); err != nil {
			return nil, err
		}
	}
	var items map[string]Item
	start := time.Now()
	err = pg.Retry(ctx, "reading the definitions", func(ctx context.Context) error {
		items = map[string]Item{}
		rows, err := conn.Query(ctx, inventoryOf(major))
		if err != nil {
			return err
		}
		var i Item
		_, err = pgx.ForEachRow(rows, []any{&i.Class, &i.OID, &i.Rel, &i.Kind, &i.Name, &i.Def, &i.NotValid}, func() error {
			if !gone[objectID{i.Class, i.OID}] && (i.Rel == 0 || !gone[objectID{classRelation, i.Rel}]) {
				one := i
				one.Name, one.On, _ = strings.Cut(i.Name, "\x01")
				items[one.ID()] = one
			}
			return nil
		})
		return err
	})
	if pg.SQLState(err) == "55P03" { // lock_not_available
		err = locked(ctx, conn, start, err)
	}
	if err != nil {
		return nil, err
	}
	return items, nil
}

// Fingerprint keeps of an inventory what a later one is compared with.
func Fingerprint(items map[string]Item) map[string]string {
	out := make(map[string]string, len(items))
	for id, i := range items {
		out[id] = i.Def[:min(len(i.Def), 12)]
	}
	return out
}

// Unchanged reports whether an item is what the fingerprint has of it.
func Unchanged(was map[string]string, i Item) bool {
	def, ok := was[i.ID()]
	return ok && def == i.Def[:min(len(i.Def), 12)]
}

// inventoryOf writes the query for a server of one major.
func inventoryOf(major int) string {
	r := []string{
		"{generated}", "a.attgenerated::text", "{prokind}", "p.prokind IN ('f', 'p', 'w')", "{aggregate}", "p.prokind = 'a'",
		"{conparent}", "con.conparentid = 0", "{tgparent}", "t.tgparentid = 0", "{kindcolumn}", "prokind", "{stattarget}", "nullif(s.stxstattarget, -1)", // the default, NULL since 17
		"{compression}", "a.attcompression::text",
	}
	if major < 14 {
		r[15] = "''"
	}
	if major < 13 {
		r[9], r[13] = "NOT t.tgisinternal", "NULL" // clones were internal
	}
	if major < 12 {
		r[1] = "''"
	}
	if major < 11 {
		r[3], r[5], r[7], r[11] = "NOT p.proisagg", "p.proisagg", "true", "proisagg"
	}
	return quotedCall.ReplaceAllString(strings.NewReplacer(r...).Replace(inventorySQL), `('"' || replace($1::text, '"', '""') || '"')`)
}

var quotedCall = regexp.MustCompile(`quoted\(([a-z.]+)\)`)
