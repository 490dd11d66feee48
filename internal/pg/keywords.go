package pg

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The driver sends every keyword that it does not know to the server as a setting, and the server
// then refuses the connection (42704). Managed providers hand out strings with such keywords, made
// for libpq (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).

// replacedKeywords have no effect because the tool brings its own.
var replacedKeywords = map[string]string{
	"keepalives":                "the tool sets its own TCP keepalives",
	"keepalives_idle":           "the tool sets its own TCP keepalives",
	"keepalives_interval":       "the tool sets its own TCP keepalives",
	"keepalives_count":          "the tool sets its own TCP keepalives",
	"tcp_user_timeout":          "the tool sets its own TCP timeouts",
	"fallback_application_name": "the tool names its own sessions",
	"application_name":          "the tool names its own sessions",
	"client_encoding":           "the tool sets its own encoding",
	"timezone":                  "the tool sets its own time zone",
	"datestyle":                 "the tool sets its own date style",
	"geqo":                      "it is not a connection keyword",
	"sslcompression":            "TLS compression is never used",
	"gsslib":                    "GSSAPI is not used",
	"sslkeylogfile":             "keys are never logged",
}

// silent ones are not worth a line: the tool pins them and nobody loses anything.
var silent = []string{"application_name", "timezone", "client_encoding", "datestyle"}

// neutralValues are keywords that are harmless with these values and refused with others, because
// leaving them out would weaken what was asked for.
var neutralValues = map[string][]string{
	"gssencmode":               {"", "disable", "prefer"},
	"gssdelegation":            {"", "0"},
	"load_balance_hosts":       {"", "disable"},
	"replication":              {"", "false", "off", "no", "0"},
	"ssl_max_protocol_version": {"", "TLSv1.3"},
	"requirepeer":              {""},
	"requiressl":               {"", "0"},
	"sslcrl":                   {""},
	"sslcrldir":                {""},
}

// settleKeywords takes libpq's keywords out of the settings that would go to the server. What
// is harmless is a warning, what is not is an error that names the keyword, never its value.
func settleKeywords(conf *pgx.ConnConfig) (warnings []string, err error) {
	var refused []string
	for _, key := range slices.Sorted(maps.Keys(conf.RuntimeParams)) {
		value := conf.RuntimeParams[key]
		lower := strings.ToLower(key)
		if lower == "options" {
			continue
		}
		delete(conf.RuntimeParams, key)
		why, replaced := replacedKeywords[lower]
		neutral, known := neutralValues[lower]
		switch {
		case replaced && slices.Contains(silent, lower):
		case replaced:
			warnings = append(warnings, fmt.Sprintf("%s in the connection string does not count: %s", key, why))
		case known && slices.Contains(neutral, value):
		case lower == "hostaddr":
			err = errors.Join(err, useHostaddr(conf, value))
		case lower == "ssl_min_protocol_version":
			err = errors.Join(err, useMinTLS(conf, value))
		case lower == "load_balance_hosts":
			warnings = append(warnings, key+" in the connection string does not count: hosts are tried in their order")
		default:
			refused = append(refused, key)
		}
	}
	if len(refused) > 0 {
		err = errors.Join(err, fmt.Errorf("it has keywords that are not supported, and leaving them out could change what it means: %s; remove them, or set server settings by options=-c", strings.Join(refused, ", ")))
	}
	return warnings, err
}

// CheckURL says what is wrong with a connection string wherever it is used: it looks at no file, at no
// variable of the environment, and connects to nothing.
func CheckURL(url string) error {
	if strayAt(url) {
		return errStrayAt
	}
	conf, err := parseInEnv(withoutFiles(url), false)
	switch {
	case err != nil && strings.HasPrefix(complaint(err), unreadService):
		return nil // it may be there where the runbook is applied
	case err != nil:
		return parseFailure(err)
	}
	_, err = settleKeywords(conf)
	return err
}

// withoutFiles empties the keywords that name files of TLS: these need not be where somebody validates.
// Of a keyword that is there twice the last one counts.
func withoutFiles(dsn string) string {
	if !strings.HasPrefix(dsn, "postgresql://") && !strings.HasPrefix(dsn, "postgres://") {
		if strings.HasSuffix(strings.TrimSpace(dsn), "=") {
			dsn += "''" // else the next word would be its value
		}
		return dsn + " sslrootcert='' sslcert='' sslkey=''"
	}
	dsn = strings.TrimRight(dsn, "?&")
	if strings.Contains(dsn, "?") {
		return dsn + "&sslrootcert=&sslcert=&sslkey="
	}
	return dsn + "?sslrootcert=&sslcert=&sslkey="
}

// useHostaddr dials the address and keeps the name for TLS, as libpq does.
func useHostaddr(conf *pgx.ConnConfig, addr string) error {
	if net.ParseIP(addr) == nil {
		return errors.New("its hostaddr is not one IP address; lists are not supported")
	}
	for _, f := range conf.Fallbacks {
		if f.Host != conf.Host {
			return errors.New("hostaddr with several hosts is not supported: give the hosts only")
		}
	}
	if strings.HasPrefix(conf.Host, "/") {
		return errors.New("it has hostaddr without host: give host, which TLS verifies and password files name")
	}
	conf.LookupFunc = func(context.Context, string) ([]string, error) { return []string{addr}, nil }
	return nil
}

func useMinTLS(conf *pgx.ConnConfig, value string) error {
	versions := map[string]uint16{"": 0, "tlsv1": 0, "tlsv1.1": 0, "tlsv1.2": tls.VersionTLS12, "tlsv1.3": tls.VersionTLS13}
	v, ok := versions[strings.ToLower(value)]
	if !ok {
		return errors.New("its ssl_min_protocol_version is invalid")
	}
	configs := []*tls.Config{conf.TLSConfig}
	for _, f := range conf.Fallbacks {
		configs = append(configs, f.TLSConfig)
	}
	for _, c := range configs {
		if c != nil {
			c.MinVersion = max(c.MinVersion, v)
		}
	}
	return nil
}
