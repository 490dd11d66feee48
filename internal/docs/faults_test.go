package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A fault of faults.txt, or a finding: what may happen, and how it must end.
type fault struct {
	id, text string
	later    bool // no test is asked for yet
	tests    []faultTest
}

// faultTest is a test, or a case in one, that names a fault.
type faultTest struct {
	folder, file string
	function     string
	name         string // of the case; "" is the whole function
}

// faultsPage is faults.txt: headings and faults in its order, and those that still have no test.
type faultsPage struct {
	lines    []string // of the file, without the last list
	faults   map[string]*fault
	untested []string
}

const (
	faultsFile    = "faults.txt"
	withoutATest  = "without a test:"
	faultsPageMD  = root + "/docs/faults.md"
	faultsPreface = "# Faults, and the tests that bring them about\n\n" +
		"Made by `make docs` from internal/docs/faults.txt and the names of the tests: `TestF14...`, or a case that is called\n" +
		"\"F14 ...\". A test of a fault proves first that the fault happened, then that nothing was lost, and that `apply` ends the run.\n"
)

var (
	faultLine     = regexp.MustCompile(`^([FDASWCR]\d+) (later )?(.+)$`)
	faultFunction = regexp.MustCompile(`^Test((?:[FDASWCR]\d+)+)(?:[A-Z]|$)`)
	faultCase     = regexp.MustCompile(`^((?:[FDASWCR]\d+ )+)[a-zA-Z'0-9]`)
	faultID       = regexp.MustCompile(`[FDASWCR]\d+`)
)

func readFaults(t *testing.T) faultsPage {
	t.Helper()
	p := faultsPage{faults: map[string]*fault{}}
	body, last, ok := strings.Cut(read(t, faultsFile), withoutATest)
	if !ok {
		t.Fatalf("%s does not end with %q", faultsFile, withoutATest)
	}
	p.lines, p.untested = strings.Split(strings.TrimRight(body, "\n"), "\n"), strings.Fields(last)
	for _, line := range p.lines {
		m := faultLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if p.faults[m[1]] != nil {
			t.Errorf("%s is twice in %s", m[1], faultsFile)
		}
		p.faults[m[1]] = &fault{id: m[1], text: m[3], later: m[2] != ""}
	}
	return p
}

// find reads the test sources of the whole project.
func (p faultsPage) find(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			at := faultTest{folder: filepath.ToSlash(filepath.Dir(rel)), file: filepath.ToSlash(rel)}
			if f, ok := decl.(*ast.FuncDecl); ok {
				at.function = f.Name.Name
				if m := faultFunction.FindStringSubmatch(at.function); m != nil {
					p.add(t, m[1], at)
				}
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				for _, e := range named(n) {
					lit, ok := e.(*ast.BasicLit)
					if !ok || lit.Kind != token.STRING {
						continue
					}
					name, err := strconv.Unquote(lit.Value)
					if m := faultCase.FindStringSubmatch(name); err == nil && m != nil {
						in := at
						in.name = name
						p.add(t, m[1], in)
					}
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// named are the expressions of a node that may be the name of a case: the first argument of Run, or
// an element of a table.
func named(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.CallExpr:
		if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Run" && len(n.Args) > 0 {
			return n.Args[:1]
		}
	case *ast.CompositeLit:
		return n.Elts
	case *ast.KeyValueExpr:
		return []ast.Expr{n.Key, n.Value}
	}
	return nil
}

func (p faultsPage) add(t *testing.T, ids string, at faultTest) {
	t.Helper()
	for _, id := range faultID.FindAllString(ids, -1) {
		f := p.faults[id]
		if f == nil {
			t.Errorf("%s: %s%s names %s, which is not in %s", at.file, at.function, at.name, id, faultsFile)
			continue
		}
		if !slices.Contains(f.tests, at) {
			f.tests = append(f.tests, at)
		}
	}
}

// missing are the faults that ask for a test and have none, in the file's order.
func (p faultsPage) missing() []string {
	var list []string
	for _, line := range p.lines {
		if m := faultLine.FindStringSubmatch(line); m != nil && len(p.faults[m[1]].tests) == 0 && !p.faults[m[1]].later {
			list = append(list, m[1])
		}
	}
	return list
}

// markdown is the page.
func (p faultsPage) markdown() string {
	var b strings.Builder
	b.WriteString(faultsPreface)
	table := false
	for _, line := range p.lines {
		m := faultLine.FindStringSubmatch(line)
		switch {
		case m == nil && strings.HasPrefix(line, "# "): // a comment, or the file's head
			continue
		case m == nil && line == "":
			if !table && !strings.HasSuffix(b.String(), "\n\n") {
				b.WriteString("\n")
			}
			continue
		case m == nil:
			if table {
				b.WriteString("\n")
			}
			table = false
			b.WriteString(line + "\n")
			continue
		case !table:
			b.WriteString("| | what happens: how it ends | tests |\n|---|---|---|\n")
			table = true
		}
		f := p.faults[m[1]]
		fmt.Fprintf(&b, "| %s | %s | %s |\n", f.id, strings.ReplaceAll(f.text, "|", `\|`), f.links())
	}
	return b.String()
}

// links names the tests of a fault; cases of one function share a link.
func (f *fault) links() string {
	if len(f.tests) == 0 {
		if f.later {
			return "open (kinds of data and schema: later)"
		}
		return "none yet"
	}
	cases := map[faultTest]int{}
	for _, at := range f.tests {
		whole := at
		whole.name = ""
		cases[whole]++
		if at.name == "" {
			cases[whole]--
		}
	}
	var list []string
	for _, at := range slices.SortedFunc(maps.Keys(cases), func(a, b faultTest) int {
		return strings.Compare(a.file+a.function, b.file+b.function)
	}) {
		name := at.function
		if name == "" {
			name = filepath.Base(at.file)
		}
		link := fmt.Sprintf("[%s](../%s)", name, at.file)
		if n := cases[at]; n > 1 {
			link += fmt.Sprintf(" (%d cases)", n)
		}
		list = append(list, link)
	}
	return strings.Join(list, ", ")
}

// TestFaults holds docs/faults.md and the list of what has no test to the tests that there are. With
// -update it writes both, but never makes the list longer.
func TestFaults(t *testing.T) {
	p := readFaults(t)
	p.find(t)
	missing := p.missing()
	for _, id := range missing {
		if !slices.Contains(p.untested, id) {
			t.Errorf("%s has no test: %s", id, p.faults[id].text)
		}
	}
	if *update {
		p.write(t, missing)
		return
	}
	for _, id := range p.untested {
		if !slices.Contains(missing, id) {
			t.Errorf("%s has a test, or is no fault, and still stands at the end of %s: run `make docs`", id, faultsFile)
		}
	}
	if page := p.markdown(); page != read(t, faultsPageMD) {
		t.Errorf("docs/faults.md is not what the tests say: run `make docs`")
	}
}

func (p faultsPage) write(t *testing.T, missing []string) {
	t.Helper()
	rest := strings.Join(slices.DeleteFunc(missing, func(id string) bool { return !slices.Contains(p.untested, id) }), " ")
	text := strings.TrimSpace(strings.Join(p.lines, "\n")) + "\n\n" + strings.TrimSpace(withoutATest+" "+rest) + "\n"
	for path, text := range map[string]string{faultsFile: text, faultsPageMD: p.markdown()} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
