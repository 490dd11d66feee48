package runbook

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/json"
)

// maxFile is the largest runbook, variable file or file() that is read, in bytes. It keeps a
// mistyped path to a dump from filling memory and every saved plan.
const maxFile = 4 << 20

// Options says where the values of a runbook come from. The zero value reads the process
// environment and the disk and demands every value, as a run does.
type Options struct {
	// Vars holds the values of --var by variable name. They win over everything else.
	Vars map[string]string
	// VarFiles are the files of --var-file in their order; a later one wins.
	VarFiles []string
	// Getenv looks up PGRUNBOOK_VAR_name and env(). Defaults to os.LookupEnv.
	Getenv func(string) (string, bool)
	// Validate makes a value that only a run needs unknown instead of missing: an unset variable,
	// an unset env(), a file() that is not there.
	Validate bool
	// ToolVersion is checked against required_version. Empty or "dev" fits every constraint; "dev" with a warning.
	ToolVersion string
	// SourceURL and TargetURL take the place of what the runbook says of a server. A variable that
	// only such a url reads needs no value.
	SourceURL, TargetURL string
	// Pinned holds files by the path that the runbook names, as kept by a saved plan. A file that
	// is in it is not read from disk.
	Pinned map[string][]byte
}

// Load reads and decodes the runbook at path, native syntax or, for a name that ends in .json,
// its JSON twin. Variable files named *.auto.vars.hcl beside it are read too.
//
// The Runbook is never nil: with errors in the diagnostics it holds what could be decoded and
// the sources that WriteDiagnostics prints from, and must not be run.
func Load(path string, opts Options) (*Runbook, hcl.Diagnostics) {
	src, err := readFile(path)
	if err != nil {
		rb := emptyRunbook(path, nil)
		return rb, hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  "Cannot read the runbook",
			Detail:   capitalize(cause(err)) + ". " + readable(err, "Name a file that exists, for example erp.runbook.hcl; `pgrunbook init` writes one."),
		}}
	}
	return Parse(path, src, opts)
}

// Parse decodes a runbook that is already in memory. The name decides the syntax, stands in
// diagnostics, and its directory is where relative paths and *.auto.vars.hcl files are looked up.
func Parse(filename string, src []byte, opts Options) (*Runbook, hcl.Diagnostics) {
	if opts.Getenv == nil {
		opts.Getenv = os.LookupEnv
	}
	l := &loader{opts: opts, rb: emptyRunbook(filename, src), refused: map[string]bool{}}
	l.files = &fileSet{dir: l.rb.Dir, rb: l.rb, pinned: opts.Pinned, optional: opts.Validate}
	l.scope = newScope(l)
	l.load(src)
	return l.rb, l.finish()
}

// loader carries one Parse: the value that is built and everything found on the way.
type loader struct {
	opts  Options
	rb    *Runbook
	diags hcl.Diagnostics
	scope *scope
	files *fileSet
	root  hcl.Body
	// refused are the variables whose default holds a password: reported once, not at every use.
	refused map[string]bool
}

func emptyRunbook(path string, src []byte) *Runbook {
	rb := &Runbook{
		Path:    path,
		Dir:     filepath.Dir(path),
		Text:    src,
		Files:   map[string][]byte{},
		Hooks:   map[string]Hooks{},
		sources: newSources(),
		secrets: &secretSet{},
	}
	if src != nil {
		rb.Files[filepath.Base(path)] = src
		rb.sources.add(path, &hcl.File{Bytes: src})
	}
	setDefaults(rb)
	return rb
}

func (l *loader) load(src []byte) {
	file, diags := parseSyntax(l.rb.Path, src)
	l.add(diags)
	if file == nil || file.Body == nil {
		return
	}
	l.rb.sources.add(l.rb.Path, &hcl.File{Bytes: src, Nav: file.Nav})
	if diags.HasErrors() {
		// The tree of a broken file misses what stands after the break: complaints about that
		// would send people to the wrong place.
		l.loadRest(src, file, diags)
		return
	}
	l.loadBody(file.Body)
}

func (l *loader) loadBody(root hcl.Body) {
	l.root = root
	if body, ok := root.(*hclsyntax.Body); ok {
		l.checkDynamic(body)
		l.checkEnvCalls(body)
	}
	content := l.content(root, rootSchema, "the top level of a runbook")
	l.loadValues(content)
	l.loadBlocks(content)
	if _, ok := root.(*hclsyntax.Body); !ok && l.files.envUsed && !slices.ContainsFunc(l.diags, isEnvDiagnostic) {
		// In the JSON twin try() hides the call from the evaluation and strings hide it from the syntax.
		l.diags = append(l.diags, envDiagnostic(root.MissingItemRange()))
	}
}

// finish pins the result and brings the diagnostics into the order of the file, free of secrets.
func (l *loader) finish() hcl.Diagnostics {
	l.rb.Digest = l.rb.digest()
	l.rb.sources.secrets = l.rb.secrets
	diags := tidy(l.diags)
	if more := len(diags) - maxDiagnostics; more > 0 {
		diags = append(diags[:maxDiagnostics:maxDiagnostics], &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Too many mistakes",
			Subject:  diags[maxDiagnostics-1].Subject, // so that it is printed last
			Detail:   fmt.Sprintf("%d more mistakes are not shown. Mend these first, or see whether the file is a runbook at all.", more),
		})
	}
	for _, d := range diags {
		l.rb.secrets.scrub(d)
	}
	return diags
}

// maxDiagnostics bounds what one file can print: a binary file is one mistake per byte.
const maxDiagnostics = 200

func (l *loader) add(diags hcl.Diagnostics) { l.diags = append(l.diags, diags...) }

// errorf notes one mistake: what is wrong in a few words, and the cause and the fix in sentences.
func (l *loader) errorf(at hcl.Range, summary, detail string, args ...any) {
	l.diags = append(l.diags, newError(at, summary, fmt.Sprintf(detail, args...)))
}

func newError(at hcl.Range, summary, detail string) *hcl.Diagnostic {
	return &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: detail, Subject: &at}
}

// parseSyntax parses native or JSON syntax. It explains the one layout rule that surprises
// people: a block's brace stands on the line of its name.
func parseSyntax(filename string, src []byte) (*hcl.File, hcl.Diagnostics) {
	if isJSON(filename) {
		return json.Parse(src, filename)
	}
	file, diags := hclsyntax.ParseConfig(src, filename, hcl.InitialPos)
	for _, d := range diags {
		if d.Summary == "Argument or block definition required" && d.Subject != nil && braceFollows(src, d.Subject.End.Byte) {
			d.Detail = fmt.Sprintf("A block's opening brace stands on the line of its name. Write %s {", d.Subject.SliceBytes(src))
		}
	}
	return file, diags
}

// braceFollows reports whether the next text behind a line's end is an opening brace.
func braceFollows(src []byte, from int) bool {
	return from <= len(src) && bytes.HasPrefix(bytes.TrimLeft(src[from:], " \t\r\n"), []byte("{"))
}

func isJSON(filename string) bool { return strings.EqualFold(filepath.Ext(filename), ".json") }

// readFile reads a file or a pipe: --var-file <(decrypt secrets) is how people keep them off disks.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s has more than the %d bytes that are read of a file", path, maxFile)
	}
	return data, nil
}

// readable says what to do about a file that cannot be read; missing is for one that is not there.
func readable(err error, missing string) string {
	var path *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missing
	case errors.Is(err, syscall.EISDIR):
		return "Name a file in it."
	case errors.Is(err, fs.ErrPermission):
		return "Make it readable for the user that runs pgrunbook."
	case errors.As(err, &path):
		return "Name a file that can be read."
	}
	return "Is this the right file?" // too large
}

// cause names the file and the reason without Go's "open" and "stat".
func cause(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Sprintf("%s: %s", path.Path, path.Err)
	}
	return err.Error()
}

// digest hashes what decides the run: names and bytes of the files that were read and the
// variables' values. A sensitive variable counts by its name alone.
func (r *Runbook) digest() string {
	h := sha256.New()
	write := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s;", len(p), p)
		}
	}
	names := make([]string, 0, len(r.Files))
	for name := range r.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		write("file", name, string(r.Files[name]))
	}
	for _, v := range r.Variables {
		switch {
		case v.Sensitive:
			write("sensitive", v.Name)
		case v.Known:
			write("variable", v.Name, v.Value)
		default:
			write("unknown", v.Name)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
