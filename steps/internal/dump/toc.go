package dump

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Entry is one line of an archive's table of contents.
type Entry struct {
	DumpID int
	Class  uint32 // oid of the source's catalog that holds the object; 0 for what is no object (ACL, COMMENT)
	OID    uint32 // on the source
	Kind   string // "TABLE", "FK CONSTRAINT", ...
	Label  string // schema, name and owner as listed, for messages
	Deps   []int  // dump ids
}

// list reads the table of contents, in the order in which pg_restore would make the objects. The
// verbose list has the dependencies but ignores the section.
func (a *Archive) list(ctx context.Context) error {
	deps := map[int][]int{}
	out, err := a.Tools.run(ctx, session{}, "pg_restore", "--list", "--verbose", a.file())
	if err != nil {
		return fmt.Errorf("listing the dump: %w", err)
	}
	all, err := parseList(out)
	if err != nil {
		return fmt.Errorf("listing the dump: %w", err)
	}
	for _, e := range all {
		deps[e.DumpID] = e.Deps
	}
	for section, into := range map[string]*[]Entry{"pre-data": &a.Pre, "post-data": &a.Post} {
		out, err := a.Tools.run(ctx, session{}, "pg_restore", "--list", "--section="+section, a.file())
		if err != nil {
			return fmt.Errorf("listing the dump: %w", err)
		}
		if *into, err = parseList(out); err != nil {
			return fmt.Errorf("listing the dump: %w", err)
		}
		for i := range *into {
			(*into)[i].Deps = deps[(*into)[i].DumpID]
		}
	}
	return nil
}

// parseList reads the output of pg_restore --list --verbose: "ID; CLASS OID KIND SCHEMA NAME OWNER",
// followed by ";\tdepends on: ID ID". Names stand there as they are, with line breaks replaced, so
// only the numbers and the kind are trusted.
func parseList(out string) ([]Entry, error) {
	var entries []Entry
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if deps, ok := strings.CutPrefix(line, ";\tdepends on:"); ok && len(entries) > 0 {
			ids, err := parseInts(deps)
			if err != nil {
				return nil, err
			}
			entries[len(entries)-1].Deps = ids
			continue
		}
		if line == "" || strings.HasPrefix(line, ";") {
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func parseEntry(line string) (Entry, error) {
	id, rest, ok := strings.Cut(line, "; ")
	fields := strings.SplitN(rest, " ", 3)
	if !ok || len(fields) != 3 {
		return Entry{}, fmt.Errorf("cannot read the line %q", line)
	}
	dumpID, err := strconv.Atoi(id)
	if err != nil {
		return Entry{}, fmt.Errorf("cannot read the line %q", line)
	}
	var oids [2]uint32
	for i := range oids {
		n, err := strconv.ParseUint(fields[i], 10, 32)
		if err != nil {
			return Entry{}, fmt.Errorf("cannot read the line %q", line)
		}
		oids[i] = uint32(n)
	}
	e := Entry{DumpID: dumpID, Class: oids[0], OID: oids[1], Label: fields[2]}
	e.Kind, _, _ = strings.Cut(fields[2], " ")
	for _, kind := range longKinds {
		if after, ok := strings.CutPrefix(fields[2], kind+" "); ok && len(kind) > len(e.Kind) {
			e.Kind, e.Label = kind, after
		}
	}
	if len(e.Label) == len(fields[2]) {
		e.Label = strings.TrimPrefix(e.Label, e.Kind+" ")
	}
	return e, nil
}

// longKinds are the kinds of more than one word (pg_dump.c, the desc of ArchiveEntry).
var longKinds = []string{
	"ACCESS METHOD", "BLOB METADATA", "CHECK CONSTRAINT", "DATABASE PROPERTIES", "DEFAULT ACL", "EVENT TRIGGER", "FK CONSTRAINT",
	"FOREIGN DATA WRAPPER", "FOREIGN TABLE", "INDEX ATTACH", "MATERIALIZED VIEW", "MATERIALIZED VIEW DATA",
	"OPERATOR CLASS", "OPERATOR FAMILY", "PROCEDURAL LANGUAGE", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA",
	"ROW SECURITY", "SECURITY LABEL", "SEQUENCE OWNED BY", "SEQUENCE SET", "SHELL TYPE", "STATISTICS DATA", "SUBSCRIPTION TABLE",
	"TABLE ATTACH", "TABLE DATA", "TEXT SEARCH CONFIGURATION", "TEXT SEARCH DICTIONARY", "TEXT SEARCH PARSER",
	"TEXT SEARCH TEMPLATE", "USER MAPPING",
}

func parseInts(s string) ([]int, error) {
	var out []int
	for f := range strings.FieldsSeq(s) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("cannot read the dependencies %q", s)
		}
		out = append(out, n)
	}
	return out, nil
}

// without removes entries of objects in gone, and what is not an object but hangs on one of them.
func without(entries []Entry, gone map[objectID]bool, ids map[int]bool) []Entry {
	return slices.DeleteFunc(entries, func(e Entry) bool {
		drop := e.Class != 0 && gone[objectID{e.Class, e.OID}]
		if e.Class == 0 {
			drop = slices.ContainsFunc(e.Deps, func(id int) bool { return ids[id] })
		}
		if drop {
			ids[e.DumpID] = true
		}
		return drop
	})
}
