package view

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// planTable is what is shown of a table in the plan's scope.
type planTable struct {
	Schema     string `json:"schema"`
	Name       string `json:"name"`
	Kind       string `json:"kind"`
	Method     string `json:"method"`
	Data       string `json:"data"`
	Identity   string `json:"identity"`
	Capture    string `json:"capture"`
	Rows       int64  `json:"rows"`
	Unanalyzed bool   `json:"unanalyzed"`
	Bytes      int64  `json:"bytes"`
	IndexBytes int64  `json:"index_bytes"`
	Chunks     int64  `json:"chunks"` // 0: not loaded in chunks
	Why        string `json:"why"`
	Key        *struct {
		Primary bool `json:"primary"`
		Columns []struct {
			Name string `json:"name"`
		} `json:"columns"`
	} `json:"key"`
	Members []struct {
		Leaf bool `json:"leaf"`
	} `json:"members"`
}

type planScope struct {
	Tables     []planTable       `json:"tables"`
	Sequences  []json.RawMessage `json:"sequences"`
	NotCarried []string          `json:"not_carried"`
}

// scopeOf decodes the plan's scope; tables come largest first. A plan without one shows none.
func scopeOf(p *engine.Plan) (planScope, error) {
	var s planScope
	if len(p.Scope) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(p.Scope, &s); err != nil {
		return s, fmt.Errorf("reading the plan's tables: %w", err)
	}
	slices.SortStableFunc(s.Tables, func(a, b planTable) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.label(), b.label()))
	})
	return s, nil
}

// notCarried joins what plan and scope say, without repeats.
func notCarried(p *engine.Plan, s planScope) []string {
	var out []string
	for _, t := range append(slices.Clone(p.NotCarried), s.NotCarried...) {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

func (t planTable) label() string { return printable(pg.Display(t.Schema, t.Name)) }

// how gives the table's way over: the method, or when or that its rows do not move live.
func (t planTable) how() string {
	switch t.Data {
	case "at_freeze":
		return "in the freeze"
	case "none":
		return "no rows"
	}
	if leaves := t.leaves(); leaves > 0 {
		return fmt.Sprintf("%s, %s", t.Method, engine.Plural(leaves, "partition"))
	}
	return t.Method
}

func (t planTable) leaves() int {
	n := 0
	for _, m := range t.Members {
		if m.Leaf {
			n++
		}
	}
	return n
}

// key gives what identifies the table's rows.
func (t planTable) keyText() string {
	if t.Key == nil {
		switch t.Identity {
		case "append_only", "full_row":
			return "none: " + t.Identity
		}
		return "none"
	}
	names := make([]string, 0, len(t.Key.Columns))
	for _, c := range t.Key.Columns {
		names = append(names, c.Name)
	}
	text := printable(strings.Join(names, ", "))
	if !t.Key.Primary {
		text += " (unique)"
	}
	return text
}

// chunksText is the number of pieces of the load, empty where it is not made in chunks.
func (t planTable) chunksText() string {
	if t.Chunks == 0 {
		return ""
	}
	return fmt.Sprint(t.Chunks)
}

// rowsText gives "12.3 M", or "unknown" where the source knows no number, or none of all its rows.
func (t planTable) rowsText() string {
	switch {
	case !t.Unanalyzed:
		return countText(t.Rows)
	case t.Rows == 0:
		return "unknown"
	}
	return "> " + countText(t.Rows)
}

// total sums the tables.
func (s planScope) total() (e engine.Estimate, chunks int64) {
	for _, t := range s.Tables {
		e.Rows, e.Bytes, chunks = e.Rows+t.Rows, e.Bytes+t.Bytes, chunks+t.Chunks
		if t.Unanalyzed {
			e.Unanalyzed++
		}
	}
	return e, chunks
}

// rowsOf gives "about 12.3 M rows", with those that nobody counted.
func rowsOf(e engine.Estimate) string {
	switch {
	case e.Unanalyzed == 0:
		return "about " + countText(e.Rows) + " rows"
	case e.Rows == 0:
		return "rows unknown: never analyzed"
	}
	return "about " + countText(e.Rows) + " rows and those of " + engine.Plural(e.Unanalyzed, "table") + " never analyzed"
}
