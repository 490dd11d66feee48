package histories_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// History is all that is random in one migration.
type History struct {
	Seed     uint64 `json:",omitempty"`
	Note     string `json:",omitempty"` // what it once found, or why else it is kept
	Carry    bool   `json:",omitempty"` // schema { on_ddl = "carry" }
	NoVerify bool   `json:",omitempty"`
	List     string // kind of the table of lists
	Own      bool   `json:",omitempty"` // servers of its own, which may crash
	Tables   []Table
	Writers  []Writer
	Commands []Command
}

// Table is one table with whatever belongs to it.
type Table struct {
	Name  string   // quoted where SQL needs it, without the schema
	Of    string   // name of its kind
	Kind  string   // for people
	Setup []string // definitions and first rows
	Rule  string   `json:",omitempty"` // body of its block in the runbook
}

// Writer is one client. It goes through its transactions again and again until the history ends.
type Writer struct{ Ops []Op }

// Op is one transaction.
type Op struct {
	Think    int       // ms before it
	Replica  bool      `json:",omitempty"` // session_replication_role = replica
	Body     []Stmt    `json:",omitempty"`
	Lists    []int     `json:",omitempty"` // lists that it appends its number to
	Transfer *Transfer `json:",omitempty"` // needs a list
	End      string    // commit, rollback, prepared, prepared rollback
}

// Stmt is one statement. A failed one ends the transaction, unless it stands in a savepoint.
type Stmt struct {
	Table string
	SQL   string
	Copy  string `json:",omitempty"` // rows for COPY FROM STDIN
	Sub   string `json:",omitempty"` // savepoint: keep, or undo
	As    string `json:",omitempty"` // what is counted when it ran: swap, other key
}

// Transfer moves an amount between two accounts.
type Transfer struct{ From, To, Amount int }

// Command is one command of the runner, repeated until it is done.
type Command struct {
	Args   string
	Faults []Fault `json:",omitempty"`
	Events []Event `json:",omitempty"`
}

// Fault happens while a command runs. Side is 0 for the source and 1 for the target.
type Fault struct {
	Try   int    `json:",omitempty"` // in which attempt, from 0
	Kind  string // see faultKinds
	Point string `json:",omitempty"` // failpoint, "name@n"
	After int    `json:",omitempty"` // ms after the attempt began
	Side  int    `json:",omitempty"`
	N     int    `json:",omitempty"` // which commit, which backend
}

// Event is what somebody does once to a table on the source, past the application.
type Event struct {
	Table string
	Kind  string
	After int      // ms after the command began
	SQL   []string // one transaction
	Alone bool     `json:",omitempty"` // not in a transaction
	Later []string `json:",omitempty"` // another transaction, some time after the first
	Undo  []string `json:",omitempty"` // of what must stop the run
}

// clone copies a history so that a cut of one is none of the other.
func (h History) clone() History {
	var c History
	b, err := json.Marshal(h)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		panic(err) // it holds strings and numbers
	}
	return c
}

func (h History) json() string {
	b, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		panic(err)
	}
	return string(b)
}

func readHistory(path string) (h History, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	return h, err
}

// String is the history as a script for people.
func (h History) String() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("-- seed %d%s; the lists are %s; on_ddl = %s", h.Seed, cond(h.Own, ", own servers", ""), h.List, cond(h.Carry, "carry", "stop"))
	for _, t := range h.Tables {
		say("-- %s: %s%s", t.Name, t.Kind, cond(t.Rule == "", "", "; runbook: "+t.Rule))
		for _, s := range t.Setup {
			say("%s;", s)
		}
	}
	for i, w := range h.Writers {
		say("-- writer %d, round and round:", i)
		for _, op := range w.Ops {
			say("--   after %d ms%s", op.Think, cond(op.Replica, ", in the replica role", ""))
			say("BEGIN;")
			for _, s := range op.Body {
				say("  %s%s;%s", cond(s.Sub == "", "", "SAVEPOINT s; "), s.SQL, cond(s.Copy == "", "", " "+strings.ReplaceAll(s.Copy, "\n", `\n`))+cond(s.Sub == "undo", " ROLLBACK TO s;", ""))
			}
			if op.Transfer != nil {
				say("  -- %d moves from account %d to %d", op.Transfer.Amount, op.Transfer.From, op.Transfer.To)
			}
			if len(op.Lists) > 0 {
				say("  -- appends its number to the lists %v", op.Lists)
			}
			say("%s;", op.End)
		}
	}
	for _, c := range h.Commands {
		say("$ pgrunbook %s", c.Args)
		for _, f := range c.Faults {
			say("--   fault, attempt %d: %s %s after %d ms, side %d, n %d", f.Try, f.Kind, f.Point, f.After, f.Side, f.N)
		}
		for _, e := range c.Events {
			say("--   after %d ms, %s: %s", e.After, e.Kind, strings.Join(e.SQL, "; ")+cond(len(e.Later) == 0, "", "; later: ")+strings.Join(e.Later, "; "))
		}
	}
	return b.String()
}

// size counts what a history consists of.
func (h History) size() string {
	var ops, stmts, faults, events int
	for _, w := range h.Writers {
		ops += len(w.Ops)
		for _, op := range w.Ops {
			stmts += len(op.Body)
		}
	}
	for _, c := range h.Commands {
		faults += len(c.Faults)
		events += len(c.Events)
	}
	return fmt.Sprintf("%d tables, %d writers, %d transactions, %d statements, %d commands, %d faults, %d events",
		len(h.Tables), len(h.Writers), ops, stmts, len(h.Commands), faults, events)
}

// withoutTables drops tables and all that touches them.
func (h History) withoutTables(gone map[string]bool) History {
	h.Tables = slices.DeleteFunc(h.Tables, func(t Table) bool { return gone[t.Name] })
	for w := range h.Writers {
		for o := range h.Writers[w].Ops {
			op := &h.Writers[w].Ops[o]
			op.Body = slices.DeleteFunc(op.Body, func(s Stmt) bool { return gone[s.Table] })
		}
	}
	for c := range h.Commands {
		h.Commands[c].Events = slices.DeleteFunc(h.Commands[c].Events, func(e Event) bool { return gone[e.Table] })
	}
	return h
}

func cond[T any](yes bool, a, b T) T {
	if yes {
		return a
	}
	return b
}
