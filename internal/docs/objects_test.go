package docs

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ours lists what a run made in a database, with N for numbers and SHAPE for a key's shape.
const ours = `
SELECT 'schema pgrunbook' FROM pg_namespace WHERE nspname = 'pgrunbook'
UNION ALL
SELECT 'table pgrunbook.' || relname FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook') AND relkind IN ('r', 'p')
UNION ALL
SELECT 'sequence pgrunbook.' || relname FROM pg_class c WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook') AND relkind = 'S'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i'))
UNION ALL
SELECT 'function pgrunbook.' || proname FROM pg_proc WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook')
UNION ALL
SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal
   AND (tgname ~ 'pgrunbook' OR tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook')))
UNION ALL
SELECT 'setting default_transaction_read_only' FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
 WHERE d.datname = current_database() AND 'default_transaction_read_only=on' = ANY (s.setconfig)
UNION ALL
SELECT 'view pgrunbook.' || relname FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook') AND relkind IN ('v', 'm')
UNION ALL
SELECT 'type pgrunbook.' || typname FROM pg_type WHERE typnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook') AND typtype IN ('e', 'd', 'r')`

var (
	shapeName  = regexp.MustCompile(`delta_\w+`)
	numberName = regexp.MustCompile(`_\d+`)
)

func (p *pair) objects(url string) []string {
	p.t.Helper()
	list := p.list(url, ours)
	for i := range list {
		list[i] = numberName.ReplaceAllString(shapeName.ReplaceAllString(list[i], "delta_SHAPE"), "_N")
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// moments are where the test stops and looks, with what the page writes in its columns.
var moments = []string{"before", "schema", "capture", "copy", "catch_up", "reverse", "arm", "freeze", "finish"}

// object is a row of the page: from which step on it is there on each side, and after which it is not.
type object struct {
	name           string
	source, target string
	goes           [2]string
}

var objectLine = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([a-z_-]+) \\| ([a-z_-]+) \\| ([a-z_-]+) \\| ([a-z_-]+) \\|")

func objectsPage(t *testing.T) []object {
	t.Helper()
	var list []object
	for _, m := range objectLine.FindAllStringSubmatch(read(t, root+"/docs/objects.md"), -1) {
		list = append(list, object{name: m[1], source: m[2], target: m[4], goes: [2]string{m[3], m[5]}})
	}
	return list
}

// expected are the objects that the page says are there at a moment.
func expected(page []object, side int, moment string) []string {
	at := slices.Index(moments, moment)
	list := []string{}
	for _, o := range page {
		from := slices.Index(moments, []string{o.source, o.target}[side])
		until := slices.Index(moments, o.goes[side])
		if from >= 0 && from <= at && (until < 0 || at < until) {
			list = append(list, o.name)
		}
	}
	slices.Sort(list)
	return list
}

// TestObjects compares the page with the catalogs of a migration, step by step.
func TestObjects(t *testing.T) {
	page := objectsPage(t)
	if len(page) == 0 {
		t.Fatal("docs/objects.md has no objects")
	}
	p := newPair(t, plainProgram, `table "shop.job_log" { data = "at_freeze" } # no key, small: reloaded inside the freeze`, `table "shop.job_log" { identity = "full_row" }`)
	look := func(moment string) {
		t.Helper()
		for side, url := range []string{p.sourceURL, p.targetURL} {
			if diff := cmp.Diff(p.objects(url), expected(page, side, moment)); diff != "" {
				t.Errorf("after %s on the %s, - is there, + is on the page:\n%s", moment, []string{"source", "target"}[side], diff)
			}
		}
	}
	look("before")
	for _, moment := range []string{"schema", "capture", "copy", "catch_up", "reverse", "arm", "freeze"} {
		p.want(0, "apply", p.file, "--auto-approve", "--approve", "go", "--by", "anna", "--until", moment)
		look(moment)
	}
	p.want(0, "finish", p.file, "--now", "--auto-approve")
	look("finish")
	if got := strings.Join(p.list(p.sourceURL, "SELECT coalesce(obj_description('pgrunbook'::regnamespace), '')"), ""); !strings.HasPrefix(got, "pgrunbook run ") {
		t.Errorf("the comment of the source's schema is %q", got)
	}
}
