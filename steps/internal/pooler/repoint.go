package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Change is a rewrite of one database entry as data: what Apply does and Undo takes back, in this
// process or in another. It holds no password.
type Change struct {
	Pooler   string    `json:"pooler"`
	File     string    `json:"file"`
	Database string    `json:"database"`
	Inserted bool      `json:"inserted,omitempty"` // only "*" served it: it gets an entry of its own, which Undo leaves with the old values
	Keys     []Replace `json:"keys"`
	From     Place     `json:"from"`
	To       Place     `json:"to"`
}

// Reverse is the change back, for a rollback: as a switch of its own, which Apply undoes when it
// fails.
func (c Change) Reverse() Change {
	c.From, c.To = c.To, c.From
	c.Keys = slices.Clone(c.Keys)
	for i, r := range c.Keys {
		c.Keys[i].Before, c.Keys[i].After = r.After, r.Before
	}
	return c
}

// Replace is one key=value of the entry, as the file has it and as it shall have it.
type Replace struct {
	Key    string `json:"key"`
	Before string `json:"before,omitempty"` // empty: the key is not there
	After  string `json:"after,omitempty"`
}

// Plan says what Apply would write; it writes nothing. The caller keeps it (in the journal) before
// Apply, so that any process can undo.
func (p *Pooler) Plan() (Change, error) {
	c := Change{Pooler: p.cfg.Name, File: p.cfg.ConfigFile, Database: p.cfg.Database}
	fail := func(hint string, err error) (Change, error) {
		return Change{}, p.fail("planning to repoint", engine.ClassFailed, hint, err)
	}
	if !p.Repoints() {
		return fail("Write config_file and connect into the pooler block, or repoint with a switch step.", errors.New("it has no config_file"))
	}
	text, err := os.ReadFile(p.cfg.ConfigFile)
	if err != nil {
		return fail("The file must be on this machine and readable for this user.", err)
	}
	e, own, err := find(text, c.Database)
	if err != nil {
		return fail(p.entryHint(), err)
	}
	if c.Inserted = !own; c.Inserted && slices.ContainsFunc([]byte(c.Database), func(b byte) bool { return !bareName(b) }) {
		return fail(p.entryHint(), errors.New(`only "*" serves it, and its name needs quotes, which not every release reads`))
	}
	connstr := string(text[e.valueStart:e.valueEnd])
	ps, err := pairs(connstr)
	if err == nil {
		c.From, err = placeOf(c.Database, ps)
	}
	if err != nil {
		return fail(p.entryHint(), err)
	}
	for _, w := range p.want {
		was, there := last(ps, w.key)
		if !there && w.key == "user" {
			// "losing forced user not supported, keeping old setting": it could not be undone.
			return fail("Write user= into the entry first, or leave it out of connect.", errors.New("connect gives a user and the entry has none, which PgBouncer takes back only at a restart"))
		}
		if r := (Replace{Key: w.key, After: w.key + "=" + quoteValue(w.value)}); !there || was.value != w.value {
			if there {
				r.Before = was.raw(connstr)
			}
			c.Keys = append(c.Keys, r)
		}
		ps = append(ps, w)
	}
	c.To, err = placeOf(c.Database, ps)
	return c, err
}

func (p *Pooler) entryHint() string {
	return fmt.Sprintf("config_file is the file with the line %s = host=... of section [databases], also when it is %%include'd.", p.cfg.Database)
}

// find gives the database's entry, or "*"'s (own is false).
func find(text []byte, database string) (_ entry, own bool, _ error) {
	all, err := entries(text)
	if err != nil {
		return entry{}, false, err
	}
	for _, name := range []string{database, "*"} {
		var found []entry
		for _, e := range all {
			if e.name == name {
				found = append(found, e)
			}
		}
		if len(found) > 1 {
			return entry{}, false, fmt.Errorf("the file has %d entries for %q and only the last counts: leave one", len(found), name)
		}
		if len(found) == 1 {
			return found[0], name == database, nil
		}
	}
	return entry{}, false, fmt.Errorf("the file has no entry for %q", database)
}

// Repoint is Plan and Apply.
func (p *Pooler) Repoint(ctx context.Context) (Change, error) {
	c, err := p.Plan()
	if err != nil {
		return Change{}, err
	}
	return c, p.Apply(ctx, c)
}

// Apply rewrites the entry, sends RELOAD and proves that the database points to c.To. When it
// fails, what it did is undone. It is idempotent: after a death in the middle it goes on.
func (p *Pooler) Apply(ctx context.Context, c Change) error {
	fail := func(err error) error {
		return p.fail("repointing", engine.ClassFailed, "See the pooler's log. If somebody works on "+c.File+", let them finish.", err)
	}
	if err := rewrite(ctx, c.File, func(text []byte) ([]byte, error) { return c.edit(text, true) }); err != nil {
		return fail(fmt.Errorf("rewriting %s: %w", c.File, err))
	}
	err := p.reload(ctx, c.To, false)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*commandTimeout)
	defer cancel()
	return errors.Join(fail(err), p.Undo(ctx, c))
}

// Undo puts the entry's old values back, sends RELOAD and proves that the database points to
// c.From. It is idempotent, keeps what others wrote into the file meanwhile, and needs nothing but
// c.
func (p *Pooler) Undo(ctx context.Context, c Change) error {
	err := rewrite(ctx, c.File, func(text []byte) ([]byte, error) { return c.edit(text, false) })
	if err != nil {
		err = fmt.Errorf("rewriting %s: %w", c.File, err)
	} else {
		err = p.reload(ctx, c.From, c.Inserted)
	}
	if err == nil {
		return nil
	}
	return p.fail("pointing back", engine.ClassFailed, fmt.Sprintf("In %s make it %s = %s, then RELOAD; on the admin console.", c.File, c.Database, c.From), err)
}

// reload has the pooler read its files and proves what it made of them: release 1.18 answers RELOAD
// also when it could not read them. viaStar: the database need not be listed, "*" may serve it.
func (p *Pooler) reload(ctx context.Context, want Place, viaStar bool) error {
	if _, err := p.ask(ctx, "RELOAD"); err != nil {
		return err
	}
	for again := false; ; again = true {
		s, err := p.State(ctx)
		if err != nil {
			return err
		}
		if s.Listed && s.Points == want || !s.Listed && viaStar {
			return nil
		}
		if again {
			if !s.Listed {
				return errors.New("after RELOAD the pooler does not list it")
			}
			return fmt.Errorf("after RELOAD it points to %s instead of %s", s.Points, want)
		}
		select { // answered from memory, but not by contract before the files were read
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// edit is the file with the change in (forth) or out of it.
func (c Change) edit(text []byte, forth bool) ([]byte, error) {
	e, own, err := find(text, c.Database)
	if err != nil {
		return nil, err
	}
	switch {
	case own:
	case !c.Inserted:
		return nil, fmt.Errorf("the entry %s is gone: somebody else took it out", c.Database)
	case !forth: // it was never written
		return text, nil
	default:
		line := c.Database + " = " + string(text[e.valueStart:e.valueEnd]) + "\n"
		text = slices.Concat(text[:e.start], []byte(line), text[e.start:])
		if e, _, err = find(text, c.Database); err != nil {
			return nil, err
		}
	}
	connstr := string(text[e.valueStart:e.valueEnd])
	if !forth {
		c = c.Reverse()
	}
	for _, r := range c.Keys {
		if connstr, err = r.in(connstr); err != nil {
			return nil, err
		}
	}
	return bytes.Join([][]byte{text[:e.valueStart], []byte(connstr), text[e.valueEnd:]}, nil), nil
}

// in replaces the key in a connection string. A value that is neither the old nor the new one is
// somebody else's.
func (r Replace) in(connstr string) (string, error) {
	ps, err := pairs(connstr)
	if err != nil {
		return "", err
	}
	at, there := last(ps, r.Key)
	is := ""
	if there {
		is = at.raw(connstr)
	}
	switch {
	case is == r.After:
		return connstr, nil
	case is != r.Before:
		return "", fmt.Errorf("somebody else has changed the entry's %s (%s, expected %s): it is left alone", r.Key, orNone(is), orNone(r.Before))
	case r.Before == "":
		return connstr + " " + r.After, nil
	case r.After == "":
		start := at.start
		if start > 0 {
			start-- // the space that stood in front of it when it was added
		}
		return connstr[:start] + connstr[at.end:], nil
	}
	return connstr[:at.start] + r.After + connstr[at.end:], nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
