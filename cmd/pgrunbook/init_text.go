package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

// runbookText writes the runbook for an inventory, in canonical form. What is standard stands in
// comments.
func runbookText(inv *steps.Inventory, f initFlags) []byte {
	w := &textWriter{}
	w.line("# Written by pgrunbook init for database %s, PostgreSQL %s.", inv.Source.Database, inv.Source.Version)
	w.line("# What stands in comments is standard, or an example. Check it: pgrunbook validate; then: pgrunbook plan")
	w.line("")
	w.line("runbook %s {}", hclString(inv.Source.Database))
	w.line("")
	w.server("source", f.source, "its application may write on all the time; nothing is restarted there")
	w.server("target", f.target, "empty but for roles and extensions that the source needs")
	w.tables(inv)
	w.walk(inv)
	text, diags := runbook.Format("init.runbook.hcl", []byte(w.b.String()))
	if diags.HasErrors() {
		return []byte(w.b.String()) // checkGenerated says why
	}
	return text
}

type textWriter struct{ b strings.Builder }

func (w *textWriter) line(format string, args ...any) { fmt.Fprintf(&w.b, format+"\n", args...) }

func (w *textWriter) server(side, service, comment string) {
	if service != "" {
		w.line("%s { # %s", side, comment)
		w.line("service = %s", hclString(service))
		w.line("}\n")
		return
	}
	w.line("variable \"%s_url\" {", side)
	w.line("type = string")
	w.line("sensitive = true")
	w.line("default = env(\"%s_URL\")", strings.ToUpper(side))
	w.line("}\n")
	w.line("%s { # %s", side, comment)
	w.line("url = var.%s_url", side)
	w.line("}\n")
}

func (w *textWriter) tables(inv *steps.Inventory) {
	w.line("tables {")
	if len(inv.Schemas) == 0 {
		w.line("# the database has no table; without include every schema is in scope")
		w.line("}\n")
		return
	}
	w.line("include = [")
	for _, s := range inv.Schemas {
		w.line("%s, # %s, %s", hclString(pattern(s.Name)+".*"), engine.Plural(s.Tables, "table"), sizeText(s.Bytes))
	}
	w.line("]")
	w.line("# exclude = [\"public.tmp_*\"] # neither structure nor rows")
	w.line("# exclude_data = [\"public.job_lock\"] # there, and empty")
	w.line("}\n")
	for _, t := range inv.Big {
		w.line("# large: %s, %s", pattern(t.Schema)+"."+pattern(t.Name), sizeText(t.Bytes))
	}
	for _, t := range inv.Keyless {
		w.keyless(t)
	}
}

// keyless writes what becomes of a table that no key identifies rows of.
func (w *textWriter) keyless(t steps.TableInventory) {
	name := hclString(pattern(t.Schema) + "." + pattern(t.Name))
	w.line("# No primary key, %s. Or give it one, or key = [...] with the columns of a unique index.", sizeText(t.Bytes))
	w.line("table %s {", name)
	if t.AtFreeze {
		w.line("data = \"at_freeze\" # small: reloaded inside the freeze")
	} else {
		w.line("identity = \"full_row\" # or \"append_only\", where rows are only inserted: cheaper to load and to follow")
	}
	w.line("}\n")
}

func (w *textWriter) walk(inv *steps.Inventory) {
	w.line("# The walk, with its standard settings: schema, capture, copy, catch_up, verify, cutover.")
	w.line("# Every phase takes before { } and after { } with steps of yours: approve, exec, http, notify, sql, wait.\n")
	if len(inv.Extensions) > 0 {
		w.line("# The target must offer these extensions: %s", strings.Join(inv.Extensions, ", "))
	}
	w.line("schema {")
	w.line("roles = \"require\" # create | require | skip")
	w.line("# owners = { postgres = \"app_owner\" }")
	w.line("# on_ddl = \"carry\" # compatible changes while it runs; else every change stops, named")
	w.line("}\n")
	w.line("copy {")
	w.line("workers = 4")
	w.line("# chunk = \"128MiB\"")
	w.line("}\n")
	w.line("verify {")
	w.line("mode = \"hash\" # every row is compared, live, before the cutover")
	w.line("}\n")
	w.line("cutover {")
	w.line("max_write_block = \"2s\" # the application waits at most so long; else all is undone and tried again")
	w.line("# window = \"02:00-05:00 Europe/Berlin\"")
	if inv.LargeObjs {
		w.line("# This database has large objects, which are not carried: plan refuses until you move them, or write")
		w.line("# large_objects = \"ignore\"")
	}
	w.line("\nbefore {")
	w.line("step \"approve\" \"cutover\" {")
	w.line("message = \"Move the writes to the target now?\"")
	w.line("}")
	w.line("}")
	w.line("\n# switch { # repoint the application while writes are held on both sides")
	w.line("#   step \"exec\" \"dns\" {")
	w.line("#     command = [\"./dns.sh\", \"new\"]")
	w.line("#     undo    = [\"./dns.sh\", \"old\"]")
	w.line("#     timeout = \"1s\"")
	w.line("#   } # or step \"http\" with undo { }, step \"sql\"")
	w.line("# }")
	w.line("}\n")
	w.line("rollback {")
	w.line("keep_for = \"72h\" # the way back stays open; finish refuses earlier without --now")
	w.line("}")
}

// plainName is a name that a pattern reads as it is.
var plainName = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)

// pattern quotes a name for a table pattern where case or characters need it.
func pattern(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// hclString quotes text for HCL.
func hclString(s string) string {
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(strconv.Quote(s))
}

func sizeText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
