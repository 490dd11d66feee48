package pg

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// libpqEnv are the connection keywords that libpq also reads from the environment
// (https://www.postgresql.org/docs/current/libpq-envars.html). Host, port, database, user and
// password are handled on their own.
var libpqEnv = map[string]string{
	"hostaddr": "PGHOSTADDR", "passfile": "PGPASSFILE", "sslmode": "PGSSLMODE", "sslcert": "PGSSLCERT",
	"sslkey": "PGSSLKEY", "sslrootcert": "PGSSLROOTCERT", "sslcrl": "PGSSLCRL", "sslcrldir": "PGSSLCRLDIR",
	"sslsni": "PGSSLSNI", "requirepeer": "PGREQUIREPEER", "gssencmode": "PGGSSENCMODE",
	"krbsrvname": "PGKRBSRVNAME", "connect_timeout": "PGCONNECT_TIMEOUT", "channel_binding": "PGCHANNELBINDING",
	"require_auth": "PGREQUIREAUTH", "target_session_attrs": "PGTARGETSESSIONATTRS", "load_balance_hosts": "PGLOADBALANCEHOSTS",
	"ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION", "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
	"sslnegotiation": "PGSSLNEGOTIATION", "sslcertmode": "PGSSLCERTMODE",
}

// LibpqEnv gives the environment with which PostgreSQL's own programs reach the same server as
// Connect does: PGHOST and its like, the password included, so that none is ever in an argument
// list. name becomes part of application_name, options go to PGOPTIONS as "-c name=value".
// Of the caller's environment only PATH, HOME, LANG and TMPDIR are kept.
func (s *Server) LibpqEnv(ctx context.Context, name string, options map[string]string) ([]string, error) {
	conf := s.conf.Copy()
	if err := s.password(ctx, conf); err != nil {
		return nil, fmt.Errorf("getting the %s's password: %w", s.cfg.Side, err)
	}
	env := []string{
		"PGAPPNAME=" + s.applicationName(Use{Name: name}), "LC_MESSAGES=C",
		"PGUSER=" + conf.User, "PGDATABASE=" + conf.Database,
	}
	for _, k := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	if conf.Password != "" {
		env = append(env, "PGPASSWORD="+conf.Password)
	}
	words := connectionWords(s.cfg.URL)
	host, port := words["host"], words["port"]
	if host == "" {
		host, port = conf.Host, strconv.Itoa(int(conf.Port))
	}
	env = append(env, "PGHOST="+host)
	if port != "" {
		env = append(env, "PGPORT="+port)
	}
	for word, variable := range libpqEnv {
		if v := words[word]; v != "" {
			env = append(env, variable+"="+v)
		} else if v, ok := os.LookupEnv(variable); ok {
			env = append(env, variable+"="+v)
		}
	}
	if s.readOnly {
		options = maps.Clone(options)
		if options == nil {
			options = map[string]string{}
		}
		options["default_transaction_read_only"] = "on"
	}
	if len(options) > 0 {
		env = append(env, "PGOPTIONS="+backendOptions(options))
	}
	return env, nil
}

// backendOptions writes settings as the server's command line reads them: spaces and backslashes
// are escaped with a backslash.
func backendOptions(options map[string]string) string {
	escape := strings.NewReplacer(`\`, `\\`, ` `, `\ `)
	var parts []string
	for k, v := range options {
		parts = append(parts, "-c "+escape.Replace(k+"="+v))
	}
	return strings.Join(parts, " ")
}

// connectionWords splits a connection string into libpq's keywords. What cannot be read is left
// out: New has already parsed the string with pgx.
func connectionWords(dsn string) map[string]string {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return urlWords(dsn)
	}
	words := map[string]string{}
	for rest := strings.TrimSpace(dsn); rest != ""; rest = strings.TrimLeft(rest, " \t\r\n") {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return words
		}
		var value string
		value, rest = cutValue(strings.TrimLeft(after, " \t\r\n"))
		words[strings.TrimSpace(key)] = value
	}
	return words
}

// cutValue takes one value of a keyword=value string: quoted, or up to white space; a backslash
// escapes the next byte (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING).
func cutValue(s string) (value, rest string) {
	var b strings.Builder
	quoted := strings.HasPrefix(s, "'")
	i := 0
	if quoted {
		i = 1
	}
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quoted && c == '\'':
			return b.String(), s[i+1:]
		case !quoted && strings.IndexByte(" \t\r\n", c) >= 0:
			return b.String(), s[i:]
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}

// urlWords reads a connection URI, whose authority may list several host:port pairs.
func urlWords(dsn string) map[string]string {
	words := map[string]string{}
	_, rest, _ := strings.Cut(dsn, "://")
	if main, query, ok := strings.Cut(rest, "?"); ok {
		rest = main
		if values, err := url.ParseQuery(query); err == nil {
			for k := range values {
				words[k] = values.Get(k)
			}
		}
	}
	authority, _, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = authority[i+1:]
	}
	if authority == "" {
		return words
	}
	var hosts, ports []string
	for _, pair := range strings.Split(authority, ",") {
		host, port := splitHostPort(pair)
		hosts, ports = append(hosts, host), append(ports, port)
	}
	words["host"] = strings.Join(hosts, ",")
	if p := strings.Join(ports, ","); strings.Trim(p, ",") != "" {
		words["port"] = p
	}
	return words
}

func splitHostPort(pair string) (host, port string) {
	if strings.HasPrefix(pair, "[") {
		host, port, _ = strings.Cut(pair[1:], "]")
		return host, strings.TrimPrefix(port, ":")
	}
	host, port, _ = strings.Cut(pair, ":")
	if decoded, err := url.PathUnescape(host); err == nil {
		host = decoded
	}
	return host, port
}
