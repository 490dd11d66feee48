package preflight

import (
	"context"
	"errors"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

const (
	oldestSource = 10
	newestKnown  = 18
)

func versions(_ context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	from, to := f.From.Identity, f.To.Identity
	for _, s := range []*Side{&f.From, &f.To} {
		major := s.Identity.Major
		if major < oldestSource {
			out = append(out, finding(engine.SeverityError, s.Name, s.Identity.VersionText(), "Upgrade the source to 10 or newer first.", "PostgreSQL %s is too old: 10 and newer are supported.", s.Identity.VersionText()))
		}
		if major > newestKnown {
			out = append(out, finding(engine.SeverityWarning, s.Name, s.Identity.VersionText(), "Look for a newer pgrunbook, and rehearse.", "PostgreSQL %d is newer than this program knows (%d).", major, newestKnown))
		}
	}
	if to.Major < from.Major {
		out = append(out, finding(engine.SeverityError, engine.Target, to.VersionText(), "Choose a target of the same or a newer major version.",
			"The target (%s) is older than the source (%s): definitions of the newer version cannot be restored there.", to.VersionText(), from.VersionText()))
	}
	return out, nil
}

// generatedApart: what the source's version has and the target's refuses.
func generatedApart(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if f.existing() || f.moved {
		return nil, nil
	}
	list, err := dump.GeneratedApart(ctx, f.From.conn, f.To.Identity.Major, f.Scope)
	var out []engine.Finding
	for _, a := range list {
		out = append(out, finding(engine.SeverityError, engine.Source, pg.Display(a.Child.Schema, a.Child.Name), a.SQL()+" -- its rows keep their values, a trigger may write those to come"+a.Loses()+"; or leave the table out by tables { exclude }", "Of this table %s.", a.Text()))
	}
	return out, err
}

func dumpTool(_ context.Context, f *Facts) ([]engine.Finding, error) {
	d := f.Dump
	switch {
	case !d.Needed:
		return nil, nil
	case d.Err != nil:
		return one(finding(engine.SeverityError, engine.Runner, "pg_dump", hint(d.Err), "No usable pg_dump: %v.", d.Err)), nil
	case d.Major < f.From.Identity.Major:
		return one(finding(engine.SeverityError, engine.Runner, d.Dir, "Install the client programs of the target's version.",
			"pg_dump %s is older than the source (%s) and refuses to read it.", d.Version, f.From.Identity.VersionText())), nil
	case d.Warning != "":
		return one(finding(engine.SeverityWarning, engine.Runner, d.Dir, "Install the newest minor version of the client programs.", "%s.", d.Warning)), nil
	}
	return nil, nil
}

func hint(err error) string {
	if h := engine.HintOf(err); h != "" {
		return h
	}
	return "Install PostgreSQL's client programs of the target's version."
}

func differentDatabases(_ context.Context, f *Facts) ([]engine.Finding, error) {
	a, b := f.From.Identity, f.To.Identity
	sameServer := a.SystemIdentifier == b.SystemIdentifier && a.SystemIdentifier != "" || a.SystemIdentifier == "" && b.SystemIdentifier == ""
	// A physical copy has the same identifier; the start of the postmaster tells it apart.
	sameServer = sameServer && a.StartedAt.Equal(b.StartedAt)
	if sameServer && a.Database == b.Database && a.DatabaseOID == b.DatabaseOID {
		return one(finding(engine.SeverityError, engine.Target, a.Database, "Correct url in the source or the target block.", "Source and target are the same database %s.", a.Database)), nil
	}
	if sameServer {
		return one(finding(engine.SeverityWarning, engine.Target, a.Address, "Nothing, if it shall go to another database of the same server. Else correct url in the source or the target block.",
			"Source and target are databases of the same server: they share its memory, disk and roles, and its end is the end of both.")), nil
	}
	return nil, nil
}

func notInRecovery(_ context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		if s.Identity.InRecovery {
			out = append(out, finding(engine.SeverityError, s.Name, s.Identity.Address, "Connect to the primary, for example with target_session_attrs=read-write and all hosts.", "It is a standby in recovery: nothing can be written there."))
		}
	}
	return out, nil
}

func tlsMode(_ context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		t := s.server.EffectiveTLS()
		if !t.Verified() {
			out = append(out, finding(engine.SeverityWarning, s.Name, s.Identity.Address, "Set sslmode=verify-full and sslrootcert in the url.",
				"The sslmode in effect is %s: somebody on the way could read or change the rows.", t.Mode))
		}
	}
	return out, nil
}

func connectionWarnings(_ context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		for _, w := range s.server.Warnings() {
			out = append(out, finding(engine.SeverityWarning, s.Name, "", "Remove it, or accept that it does not count.", "%s.", w))
		}
	}
	return out, nil
}

// Pooler gives the finding of an error that no session could be had because of a pooler; it is no Check,
// since nothing can be asked through one.
func Pooler(err error) (engine.Finding, bool) {
	var p *pg.PoolerError
	if !errors.As(err, &p) {
		return engine.Finding{}, false
	}
	f := finding(engine.SeverityError, engine.Side(p.Side), p.Address, p.Fix(), "%v; nothing else was looked at.", p)
	f.Code = "PRE112"
	return f, true
}
