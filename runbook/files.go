package runbook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// fileSet reads the files that a runbook names and pins their bytes in Runbook.Files.
type fileSet struct {
	dir      string
	rb       *Runbook
	pinned   map[string][]byte
	optional bool // a missing file is no error: validate
	envUsed  bool // env() was called outside the default of a variable
	secret   bool // a sensitive value is being computed: its files are read but not pinned
}

// errNoFile says that a file is not there and that nothing but a run needs it.
var errNoFile = errors.New("file is not there yet")

// read returns the bytes of a file named in the runbook. Files that are pinned by a plan must
// stand in the runbook's folder, so that the plan means the same on every machine; what a
// sensitive value reads is never pinned and may stand anywhere.
func (f *fileSet) read(name string, secret bool) ([]byte, error) {
	secret = secret || f.secret
	name = filepath.ToSlash(filepath.Clean(name))
	if !secret {
		if data, ok := f.pinned[name]; ok {
			f.rb.Files[name] = data
			return data, nil
		}
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("%q is outside the runbook's folder; put the file beside the runbook and name it relative to it", name)
		}
	}
	data, err := readFile(f.path(name))
	if err != nil {
		if f.optional && errors.Is(err, fs.ErrNotExist) {
			return nil, errNoFile
		}
		return nil, errors.New(cause(err))
	}
	if !secret {
		f.rb.Files[name] = data
	}
	return data, nil
}

func (f *fileSet) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(f.dir, name)
}

// pin keeps a file that a step or a password command runs, if there is one: "./dns.sh" beside
// the runbook is part of what people reviewed. Anything else is left to whoever runs it.
func (f *fileSet) pin(word string) {
	name := filepath.ToSlash(filepath.Clean(word))
	if !strings.HasPrefix(word, "./") || !filepath.IsLocal(name) {
		return
	}
	if data, ok := f.pinned[name]; ok {
		f.rb.Files[name] = data
		return
	}
	if info, err := os.Stat(f.path(name)); err != nil || !info.Mode().IsRegular() {
		return
	}
	if data, err := readFile(f.path(name)); err == nil {
		f.rb.Files[name] = data
	}
}

// ReadFile returns the bytes of a file that the step names, relative to the runbook's folder.
// The bytes are those that a saved plan pinned, where there is one, and they enter
// Runbook.Files otherwise. In validate a file that is not there gives nil and no error.
func (b StepBlock) ReadFile(name string) ([]byte, error) {
	if b.files == nil {
		return nil, fmt.Errorf("reading %s: the step belongs to no runbook", name)
	}
	data, err := b.files.read(name, false)
	if errors.Is(err, errNoFile) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	b.files.rb.Digest = b.files.rb.digest()
	return data, nil
}
