package runbook

import (
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// checkLiteralSecret refuses a secret in the file: a saved plan carries the runbook's text. A
// connection string without a password is no secret.
func (l *loader) checkLiteralSecret(v *variable) {
	value, ok := constant(v.def.Expr)
	if !ok {
		return
	}
	at := v.def.Expr.Range()
	if v.sensitive {
		if isSecret(value) {
			l.rb.sources.hide(at)
			l.rb.secrets.addValue(value)
			l.errorf(at, "Secret in the file", "The default of a sensitive variable is written out, and the runbook is kept in git and in every saved plan. Write default = env(\"%s\"), or leave the default out and set PGRUNBOOK_VAR_%s.", envName(v.name), v.name)
		}
		return
	}
	for _, text := range texts(value) {
		if pw, _ := connPassword(text); pw != "" {
			l.hidePassword(v.def.Expr, text)
			l.refused[v.name] = true
		}
	}
	if l.refused[v.name] {
		l.errorf(at, "Password in the file", "The default of variable %q holds a password, and the runbook is kept in git and in every saved plan. "+passwordFix, v.name, envName(v.name))
	}
}

// checkPlainPassword refuses a password in the value of a variable that is not sensitive,
// wherever it came from: plans show such values.
func (l *loader) checkPlainPassword(v *variable, value cty.Value) {
	if v.sensitive || value.ContainsMarked() || l.refused[v.name] {
		return
	}
	for _, text := range texts(value) {
		if pw, raw := connPassword(text); pw != "" {
			l.rb.secrets.insert(pw)
			l.rb.secrets.insert(raw)
			l.refused[v.name] = true
		}
	}
	if l.refused[v.name] {
		l.errorf(v.rng, "Password in a plain value", "The value of variable %q holds a password, and plans and logs show variables that are not sensitive. Write sensitive = true in it, or use password_command, or keep the password in a passfile (~/.pgpass).", v.name)
	}
}

// constant returns the value of an expression that needs nothing from outside the file: no name,
// no environment, no other file.
func constant(expr hcl.Expression) (cty.Value, bool) {
	if len(expr.Variables()) > 0 {
		return cty.NilVal, false
	}
	v, diags := expr.Value(&hcl.EvalContext{Functions: pure})
	return v, !diags.HasErrors() && v.IsWhollyKnown()
}

// isSecret reports whether a constant says something that a sensitive variable should not say in
// the file.
func isSecret(v cty.Value) bool {
	found := false
	_ = cty.Walk(v, func(_ cty.Path, leaf cty.Value) (bool, error) {
		found = found || leaf.Type() == cty.Number && !leaf.IsNull()
		return true, nil
	})
	for _, text := range texts(v) {
		pw, _ := connPassword(text)
		found = found || pw != "" || text != "" && !isConn(text)
	}
	return found
}

// texts returns every string inside v.
func texts(v cty.Value) []string {
	var out []string
	_ = cty.Walk(v, func(_ cty.Path, leaf cty.Value) (bool, error) {
		if leaf.IsKnown() && !leaf.IsNull() && leaf.Type() == cty.String {
			out = append(out, leaf.AsString())
		}
		return true, nil
	})
	return out
}

// isConn reports whether text is a connection string of either form that names a server.
func isConn(text string) bool {
	if strings.HasPrefix(text, "postgresql://") || strings.HasPrefix(text, "postgres://") {
		return true
	}
	options, err := connOptions(text)
	for _, key := range []string{"host", "hostaddr", "dbname", "service"} {
		if options[key] != "" {
			return err == nil
		}
	}
	return false
}

// passwordFix names the three ways that keep a password out of the file. %s is the name of an
// environment variable.
const passwordFix = "Take it out: mark the variable sensitive = true with default = env(\"%s\"), or use password_command, or keep it in a passfile (~/.pgpass)." //nolint:gosec // advice, no credential
