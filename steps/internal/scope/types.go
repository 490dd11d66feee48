package scope

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// typeRow is one type that a column in scope has, or is built from.
type typeRow struct {
	OID     uint32
	Name    string   // quoted and qualified
	Plain   string   // typname
	Kind    string   // pg_type.typtype
	Element uint32   // of a true array
	Base    uint32   // of a domain
	Send    string   // the function that gives its binary form; "-" is none
	Parts   []uint32 // a range's subtype, a multirange's range, a composite's columns
}

const typesSQL = `
SELECT t.oid, quote_ident(n.nspname) || '.' || quote_ident(t.typname), t.typname::text, t.typtype::text,
       CASE WHEN t.typlen = -1 AND t.typelem <> 0 AND t.typcategory = 'A' THEN t.typelem ELSE 0 END, t.typbasetype, t.typsend::text,
       ARRAY (SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
              UNION ALL {multirange}
              SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = ANY ($1::oid[])`

// readTypes loads the types of all columns, and level by level what they are built from.
func (c *catalog) readTypes(ctx context.Context, tx pgx.Tx) error {
	multirange := ""
	if c.major >= 14 {
		multirange = "SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid UNION ALL"
	}
	sql := strings.Replace(typesSQL, "{multirange}", multirange, 1)
	c.types = map[uint32]*typeRow{}
	wanted := map[uint32]bool{}
	for _, cols := range c.columns {
		for _, col := range cols {
			wanted[col.TypeOID] = true
		}
	}
	for len(wanted) > 0 {
		oids := make([]uint32, 0, len(wanted))
		for oid := range wanted {
			oids = append(oids, oid)
		}
		rows, err := collect(ctx, tx, sql, pgx.RowToStructByPos[typeRow], oids)
		if err != nil {
			return fmt.Errorf("reading the types: %w", err)
		}
		wanted = map[uint32]bool{}
		for _, t := range rows {
			c.types[t.OID] = &t
		}
		for _, t := range rows {
			for _, oid := range append([]uint32{t.Element, t.Base}, t.Parts...) {
				if oid != 0 && c.types[oid] == nil {
					wanted[oid] = true
				}
			}
		}
	}
	return nil
}

// firstUnpinned is where object ids stop being the same in every major: below it they are assigned
// by hand (PostgreSQL source, access/transam.h, FirstGenbkiObjectId).
const firstUnpinned = 10000

// binaryPortable reports whether the binary form means the same on another server: built in, and
// holding no object ids. Arrays and composites carry the ids of their parts' types, so these must
// be pinned as well; enums are sent as their labels.
func (c *catalog) binaryPortable(oid uint32) bool {
	t := c.types[oid]
	switch {
	case t == nil || t.Send == "-":
		return false
	case t.Kind == "d":
		return c.binaryPortable(t.Base)
	case t.Element != 0:
		return t.Element < firstUnpinned && c.binaryPortable(t.Element)
	case t.Kind == "e":
		return true
	case t.Kind == "r" || t.Kind == "m":
		return c.partsPortable(t, false)
	case t.Kind == "c":
		return c.partsPortable(t, true)
	}
	return t.Kind == "b" && oid < firstUnpinned && !strings.HasPrefix(t.Plain, "reg")
}

func (c *catalog) partsPortable(t *typeRow, pinned bool) bool {
	for _, p := range t.Parts {
		if pinned && p >= firstUnpinned || !c.binaryPortable(p) {
			return false
		}
	}
	return len(t.Parts) > 0
}

// deltaType is the type of a key's column in a delta: wide enough that no compatible change of the
// application's column can make its writes fail.
func (c *catalog) deltaType(oid uint32) string {
	t := c.types[oid]
	for t != nil && t.Kind == "d" {
		t = c.types[t.Base]
	}
	if t == nil {
		return ""
	}
	switch t.Name {
	case "pg_catalog.int2", "pg_catalog.int4":
		return "pg_catalog.int8"
	case `pg_catalog."varchar"`, "pg_catalog.varchar":
		return "pg_catalog.text"
	}
	return t.Name
}

// floats are the built-in types whose text is that of floats: it has had other digits since 12.
var floats = map[string]bool{"float4": true, "float8": true, "point": true, "lseg": true, "path": true, "box": true, "polygon": true, "line": true, "circle": true}

// floatSend gives the function that tells values of a type apart whose text has floats in it, where
// its binary form is portable; empty for other types.
func (c *catalog) floatSend(oid uint32) string {
	if t := c.types[oid]; t != nil && c.holdsFloats(oid) && c.binaryPortable(oid) {
		return t.Send
	}
	return ""
}

func (c *catalog) holdsFloats(oid uint32) bool {
	t := c.types[oid]
	if t == nil {
		return false
	}
	if oid < firstUnpinned && floats[t.Plain] {
		return true
	}
	return slices.ContainsFunc(append([]uint32{t.Element, t.Base}, t.Parts...), c.holdsFloats)
}
