package scope

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// smallKeyless is the size in bytes up to which a table without a key is reloaded inside the
// freeze without being asked for.
const smallKeyless = 64 << 20

// table makes one table of the scope; false means that a finding says why not.
func (r *resolver) table(rel *relation) (Table, bool) {
	rule, diags := r.rb.RuleFor(rel.Schema, rel.Name.Name)
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			r.find(CodeRule, engine.SeverityError, rel.String(), d.Summary+": "+d.Detail, "")
		}
	}
	t := Table{Name: rel.Name, OID: rel.oid, Kind: Plain, Unlogged: rel.persistence == "u", Rows: rel.tuples, Unanalyzed: rel.unanalyzed(), Bytes: rel.bytes, Blocks: rel.blocks, IndexBytes: rel.indexBytes}
	if rel.kind == "p" {
		t.Kind = Partitioned
		t.Rows = 0
	}
	foreign, subscribed := r.members(rel, &t)
	t.Inherits = r.inherits(rel)
	for _, c := range r.cat.columns[rel.oid] {
		t.Columns = append(t.Columns, Column{
			Num: c.Num, Name: c.Name, Type: c.Type, TypeOID: c.TypeOID, NotNull: c.NotNull, Generated: c.Generated,
			Identity: c.Identity, Binary: r.cat.binaryPortable(c.TypeOID), FloatSend: r.cat.floatSend(c.TypeOID),
		})
	}
	t.Key = r.key(rel, rule)
	t.Method, t.Chunk = Method(first(rule.Method, r.rb.Copy.Method, string(Stream))), chunkSize(r.rb, rule)
	why := r.data(rel, &t, rule)
	r.method(rel, &t, rule)
	r.wide(&t)
	t.Chunks = t.pieces()
	captureWhy := r.capture(&t, foreign, subscribed)
	t.Why = strings.Join(append(why, captureWhy), "; ")
	return t, true
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// members fills in a partition tree and its sums.
func (r *resolver) members(rel *relation, t *Table) (foreign, subscribed bool) {
	subscribed = rel.subscribed
	if rel.kind != "p" {
		return false, subscribed
	}
	for _, m := range r.cat.members(rel) {
		member := Member{OID: m.oid, Name: m.Name, Leaf: m.kind != "p", Foreign: m.kind == "f", Bytes: m.bytes, Blocks: m.blocks}
		if member.Leaf {
			member.Rows = m.tuples
		}
		t.Members = append(t.Members, member)
		t.Bytes, t.IndexBytes, t.Rows = t.Bytes+m.bytes, t.IndexBytes+m.indexBytes, t.Rows+member.Rows
		t.Unanalyzed = t.Unanalyzed || m.unanalyzed()
		foreign = foreign || member.Foreign
		subscribed = subscribed || m.subscribed
		t.Unlogged = t.Unlogged || m.persistence == "u"
	}
	sortByName(t.Members)
	return foreign, subscribed
}

// inherits reports legacy inheritance: parents or children that are no partitions.
func (r *resolver) inherits(rel *relation) bool {
	for _, oid := range rel.children {
		if !r.cat.byOID[oid].partition {
			return true
		}
	}
	return len(rel.parents) > 0 && !rel.partition
}

// data decides when the rows move and what identifies them; it gives the reasons.
func (r *resolver) data(rel *relation, t *Table, rule runbook.TableRule) []string {
	t.Data, t.Identity = Live, ByKey
	switch {
	case rel.decision == runbook.ExcludeData:
		t.Data = NoData
		return []string{"exclude_data: its rows stay behind"}
	case rule.Data == string(NoData):
		t.Data = NoData
		return []string{"data = none: its rows stay behind"}
	case rule.Data == string(AtFreeze):
		t.Data = AtFreeze
		return []string{"data = at_freeze: reloaded inside the freeze, " + humanSize(t.Bytes)}
	case (rule.Identity == string(AppendOnly) || rule.Identity == string(FullRow)) && slices.ContainsFunc(t.Columns, func(c Column) bool { return !c.Generated }):
		// A table without columns has rows all the same, and nothing to record of them.
		t.Identity = Identity(rule.Identity)
		return []string{fmt.Sprintf("identity = %s", rule.Identity)}
	case t.Key != nil:
		return []string{keyWhy(t.Key)}
	case len(rule.Key) > 0:
		return []string{"its key cannot be used"} // there is a finding already
	case t.Bytes <= smallKeyless && rule.Data == "":
		t.Data = AtFreeze
		r.find(CodeKeylessSmall, engine.SeverityInfo, rel.String(), fmt.Sprintf("It has no key and is small (%s): it is reloaded inside the freeze.", humanSize(t.Bytes)), "")
		return []string{"no key, small: reloaded inside the freeze, " + humanSize(t.Bytes)}
	}
	r.find(CodeKeyless, engine.SeverityError, rel.String(), fmt.Sprintf("It has no key (%s), so its changes cannot be followed row by row.", humanSize(t.Bytes)),
		fmt.Sprintf("Choose in a block table %q: data = \"at_freeze\" (reloaded inside the freeze), identity = \"append_only\" (only inserts happen), or identity = \"full_row\" (whole rows are recorded). Or create a unique index over NOT NULL columns.", t.Name))
	return []string{"no key"}
}

// method keeps live tables without a key to our own load: rows that changed since capture cannot be
// scrubbed from them by key, so a load by other means would leave those rows there twice.
func (r *resolver) method(rel *relation, t *Table, rule runbook.TableRule) {
	if t.Data != Live || t.Key != nil && t.Identity == ByKey || t.Method == Stream {
		return
	}
	if rule.Method != "" {
		r.find(CodeRule, engine.SeverityError, rel.String(), fmt.Sprintf("It has no key to be followed by, so method = %q would load rows twice that change meanwhile.", rule.Method),
			"Leave method out of its table block: it is streamed, whatever the copy block says.")
	}
	t.Method = Stream
}

// mostColumns is PostgreSQL's limit of one table (MaxHeapAttributeNumber in access/htup_details.h).
const mostColumns = 1600

// wide refuses tables whose changed rows a pass could not stage: a row is there beside its key, and beside
// whether it is still there. Whichever way such a table is loaded, passes follow it.
func (r *resolver) wide(t *Table) {
	if t.Data != Live || t.Identity != ByKey || t.Key == nil {
		return
	}
	need := len(t.Key.Columns) + 1
	for _, c := range t.Columns {
		if !c.Generated {
			need++
		}
	}
	if need > mostColumns {
		r.find(CodeWide, engine.SeverityError, t.Display(), fmt.Sprintf("A changed row of it is staged with its key in %d columns, and a table may have %d.", need, mostColumns),
			fmt.Sprintf("Choose in a block table %q: data = \"at_freeze\" (reloaded inside the freeze) or identity = \"full_row\" (whole rows are recorded). Or leave it out: tables { exclude = [%q] }.", t.Name, t.Display()))
	}
}

func keyWhy(k *Key) string {
	names := make([]string, 0, len(k.Columns))
	for _, c := range k.Columns {
		names = append(names, c.Name)
	}
	if k.Primary {
		return fmt.Sprintf("primary key (%s)", strings.Join(names, ", "))
	}
	return fmt.Sprintf("unique index %s (%s)", k.Index.Name, strings.Join(names, ", "))
}

// capture chooses the triggers: statement triggers with transition tables unless only row triggers
// are right.
func (r *resolver) capture(t *Table, foreign, subscribed bool) string {
	if t.Data != Live {
		t.Capture = NoCapture
		return "not captured"
	}
	t.Capture = Row
	limit := r.cat.tempLimit
	switch {
	case subscribed:
		return "row triggers: a subscription writes it, and its worker fires no statement triggers"
	case t.Inherits:
		return "row triggers: it has inheritance parents or children, whose rows a statement trigger would log in the wrong delta"
	case foreign:
		return "row triggers on local partitions: transition tables do not work with foreign partitions"
	case t.Kind == Partitioned:
		// PostgreSQL 15 to 18 keep such rows in the transition tables of INSERT and DELETE, whose statement
		// triggers a MERGE without such actions does not fire (ExecDeleteEpilogue, ExecInsert, fireASTriggers).
		// Either side may be one of these: the way back captures with the same triggers.
		return "row triggers on its partitions: statement triggers miss rows that a MERGE moves between them"
	case limit > 0 && 2*t.Bytes > limit:
		r.find(CodeTempFileLimit, engine.SeverityInfo, t.Display(), fmt.Sprintf("Statement triggers could exceed the temp_file_limit of %s that a role has: row triggers are used.", humanSize(limit)), "")
		return "row triggers: a temp_file_limit is in the way of transition tables"
	}
	t.Capture = Statement
	return "statement triggers"
}

func humanSize(bytes int64) string { return humanize.IBytes(uint64(max(bytes, 0))) }
