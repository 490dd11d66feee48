package runbook

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

func (l *loader) loadServer(content *hcl.BodyContent, side string) Server {
	block := l.single(content, side)
	if block == nil {
		if l.hasBlock(side) {
			return Server{} // written with a label, which is reported
		}
		l.errorf(content.MissingItemRange, "Missing "+side+" block", "A runbook names both servers. Write %s { url = var.%s_url } with a sensitive variable, or use service or inherit_env.", side, side)
		return Server{}
	}
	b := l.newBody(l.content(block.Body, serverSchema, side), block.DefRange)
	s := Server{
		Service:             b.String("service"),
		InheritEnv:          b.Bool("inherit_env", false),
		PasswordCommand:     b.Strings("password_command"),
		ApplyRole:           b.String("apply_role"),
		ReplicaRoleFunction: b.String("replica_role_function"),
		Range:               block.DefRange,
	}
	override := l.override(side)
	if override != "" {
		delete(b.attrs, "url")
	}
	s.URL, s.URLKnown = l.connString(b, "url", side+"_url")
	if attr := b.attrs["url"]; attr != nil {
		s.URLRange = attr.Expr.Range()
	}
	if override != "" {
		s = l.overridden(s, override)
	} else {
		l.checkWays(b, side, s)
	}
	if b.Known("password_command") && (len(s.PasswordCommand) == 0 || s.PasswordCommand[0] == "") {
		b.Errorf("password_command", "Empty command", "password_command is the program and its arguments, such as [\"./token.sh\"].")
	}
	for _, word := range s.PasswordCommand {
		l.files.pin(word)
	}
	if b.Known("replica_role_function") && strings.Count(s.ReplicaRoleFunction, ".") != 1 {
		b.Errorf("replica_role_function", "Function without a schema", "%q must name its schema, such as \"public.rds_session_replication_role\".", s.ReplicaRoleFunction)
	}
	l.add(b.Done())
	return s
}

// checkWays asks for exactly one way to reach a server.
func (l *loader) checkWays(b *Body, side string, s Server) {
	var ways []string
	for _, way := range []string{"url", "service"} {
		if b.Has(way) && !b.value(way).IsNull() {
			ways = append(ways, way)
		}
	}
	if s.InheritEnv {
		ways = append(ways, "inherit_env")
	}
	switch len(ways) {
	case 1:
	case 0:
		l.errorf(b.at, "No way to the server", "%s does not say how to connect. Write url = var.%s_url, or service = \"NAME\" of pg_service.conf, or inherit_env = true to take the PG* variables.", side, side)
	default:
		l.errorf(b.at, "Two ways to the server", "%s has %s. Keep one of them.", side, strings.Join(ways, " and "))
	}
}

// connString reads a connection string that may be sensitive, and refuses a password in it that
// does not come from a sensitive variable. Suggested is the variable to write instead.
func (l *loader) connString(b *Body, name, suggested string) (string, bool) {
	secret := b.Sensitive(name)
	text := secret.Reveal()
	if !b.Known(name) {
		return "", false
	}
	if secret.Sensitive() {
		l.rb.secrets.add(text)
	} else if pw, _ := connPassword(text); pw != "" {
		l.refusePassword(b.attrs[name].Expr, text, name, fmt.Sprintf(passwordFix+" Then write %s = var.%s.", envName(suggested), name, suggested))
		return text, true
	}
	if err := checkConn(text); err != nil {
		b.Errorf(name, "Bad connection string", "The value of %s is no connection string: %s. %s", name, err, connForms)
		return text, false
	}
	return text, true
}

// refusePassword reports a password that stands in the file or in a variable that is not
// sensitive, and keeps it out of every excerpt. Fix says what to write instead.
func (l *loader) refusePassword(expr hcl.Expression, text, name, fix string) {
	l.hidePassword(expr, text)
	for _, t := range expr.Variables() {
		if variable, ok := strings.CutPrefix(reference(t), "var."); ok {
			if !l.refused[variable] {
				l.errorf(expr.Range(), "Password in a plain value", "The value of %s holds a password, and variable %q is not sensitive: plans and logs would show it. Write sensitive = true in the variable, or use password_command, or keep the password in a passfile (~/.pgpass).", name, variable)
			}
			return
		}
	}
	l.errorf(expr.Range(), "Password in the file", "The value of %s holds a password, and the runbook is kept in git and in every saved plan. %s", name, fix)
}

// hidePassword blots out the password of a connection string that is written in the file: the
// password alone where it can be found, else the whole expression.
func (l *loader) hidePassword(expr hcl.Expression, text string) {
	pw, raw := connPassword(text)
	l.rb.secrets.insert(pw)
	l.rb.secrets.insert(raw)
	if _, diags := hcl.AbsTraversalForExpr(expr); !diags.HasErrors() {
		return // a reference: its value stands elsewhere
	}
	r := expr.Range()
	src := l.rb.sources.slice(&r)
	at := bytes.Index(src, []byte(text))
	if at < 0 || raw == "" {
		l.rb.sources.hide(r)
		return
	}
	for from := at; ; {
		i := bytes.Index(src[from:], []byte(raw))
		if i < 0 {
			return
		}
		start := r.Start.Byte + from + i
		l.rb.sources.hide(hcl.Range{Filename: r.Filename, Start: hcl.Pos{Byte: start}, End: hcl.Pos{Byte: start + len(raw)}})
		from += i + len(raw)
	}
}

// checkServers refuses a move of a database onto itself, as far as text shows it.
func (l *loader) checkServers() {
	s, t := l.rb.Source, l.rb.Target
	same := s.URLKnown && t.URLKnown && s.URL == t.URL && s.URL != "" || s.Service != "" && s.Service == t.Service
	if same {
		l.errorf(t.Range, "Source and target are the same", "Both sides name the same database; the source stands at %s. Name the new server in target.", s.Range)
	}
	if s.InheritEnv && t.InheritEnv {
		l.errorf(t.Range, "Source and target are the same", "inherit_env takes the PG* variables, which can describe one server only. Give the other side a url or a service; the source stands at %s.", s.Range)
	}
}

func envName(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
