package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// formatting says what fmt does with what differs.
type formatting struct{ check, diff bool }

func newFmt(a *app) *cobra.Command {
	var f formatting
	cmd := &cobra.Command{
		Use:   "fmt [FILE... | -]",
		Short: "Write runbooks in the standard form",
		Long:  "fmt writes runbooks in the standard form and lists the files that it changed. Without files it takes the\nrunbooks of the working directory; - reads stdin and writes stdout. A file that does not parse is left alone.",
		RunE:  func(_ *cobra.Command, args []string) error { return a.format(args, f) },
	}
	cmd.Flags().BoolVar(&f.check, "check", false, "change nothing; exit 3 when a file differs")
	cmd.Flags().BoolVar(&f.diff, "diff", false, "show the changes as a diff")
	return cmd
}

func (a *app) format(args []string, f formatting) error {
	if len(args) == 0 {
		var err error
		if args, err = filepath.Glob("*.runbook.hcl"); err != nil {
			return fmt.Errorf("looking for runbooks: %w", err)
		}
		if len(args) == 0 {
			_, err := findRunbook(nil)
			return err
		}
	}
	differs, broken := false, false
	for _, name := range args {
		changed, ok, err := a.formatOne(name, f)
		if err != nil {
			return err
		}
		differs, broken = differs || changed, broken || !ok
	}
	if broken {
		return &shownError{code: exitUsage, err: engine.Errorf(engine.ClassRunbook, "", "not every file could be formatted")}
	}
	if f.check && differs {
		a.exit = exitDiffers
	}
	return nil
}

// formatOne formats one file; ok is false when it does not parse, which was shown.
func (a *app) formatOne(name string, f formatting) (changed, ok bool, err error) {
	src, err := a.source(name)
	if err != nil {
		return false, false, err
	}
	out, diags := runbook.Format(name, src)
	if diags.HasErrors() {
		color := view.UseColor(a.color(), terminal(a.rawErr), a.env)
		return false, false, runbook.WriteDiagnostics(a.stderr, diags, map[string][]byte{name: src}, 0, color)
	}
	changed = !bytes.Equal(src, out)
	switch {
	case f.diff && changed:
		_, err = io.WriteString(a.stdout, udiff.Unified(name, name, string(src), string(out)))
	case name == "-" && !f.check:
		_, err = a.stdout.Write(out)
	case changed:
		_, err = fmt.Fprintln(a.stdout, name)
	}
	if err == nil && changed && !f.check && name != "-" {
		err = rewrite(name, out)
	}
	return changed, true, err
}

func (a *app) source(name string) ([]byte, error) {
	var src []byte
	var err error
	if name == "-" {
		src, err = io.ReadAll(a.stdin)
	} else {
		src, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, usageError("Name a file that can be read.", "%w", err)
	}
	return src, nil
}

// rewrite keeps the file's mode.
func rewrite(name string, data []byte) error {
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("formatting: %w", err)
	}
	if err := os.WriteFile(name, data, info.Mode().Perm()); err != nil {
		return fmt.Errorf("formatting: %w", err)
	}
	return nil
}
