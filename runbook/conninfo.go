package runbook

import (
	"errors"
	"net/url"
	"strings"
)

// connForms is what a url may be, for messages.
const connForms = `Write "postgresql://user@host:5432/dbname?sslmode=verify-full" or "host=... port=5432 dbname=... user=...".`

// connPassword finds the password in a connection string of either form (PostgreSQL docs,
// "Connection Strings"): decoded, and as written. Both are empty when there is none.
func connPassword(s string) (password, raw string) {
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL || strings.ContainsAny(scheme, "= '") {
		options, _ := connOptions(s)
		for _, key := range []string{"password", "sslpassword"} {
			if v := options[key]; v != "" {
				return v, v
			}
		}
		return "", ""
	}
	if user := userinfo(rest); user != "" {
		if _, pw, ok := strings.Cut(user, ":"); ok && pw != "" {
			return unescape(pw), pw
		}
	}
	_, query, _ := strings.Cut(rest, "?")
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if key = unescape(key); (key == "password" || key == "sslpassword") && value != "" {
			return unescape(value), value
		}
	}
	return "", ""
}

// userinfo returns what stands before the @ of a URL. A password with an unescaped slash,
// question mark or hash ends the authority too early; it is told from host:port by not being a
// number.
func userinfo(rest string) string {
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if i := strings.LastIndex(authority, "@"); i >= 0 {
		return authority[:i]
	}
	_, port, ok := strings.Cut(authority, ":")
	if !ok || strings.Trim(port, "0123456789,:") == "" || strings.Contains(authority, ",") {
		return ""
	}
	if i := strings.LastIndex(rest, "@"); i >= 0 {
		return rest[:i]
	}
	return ""
}

func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

// checkConn tells whether s has one of the two forms of a connection string.
func checkConn(s string) error {
	scheme, rest, isURL := strings.Cut(s, "://")
	if isURL && !strings.ContainsAny(scheme, "= '") {
		if scheme != "postgresql" && scheme != "postgres" {
			return errors.New("the scheme is not postgresql")
		}
		if strings.ContainsAny(rest, " \t\n") {
			return errors.New("it holds white space")
		}
		return nil
	}
	options, err := connOptions(s)
	if err == nil && len(options) == 0 {
		err = errors.New("it is empty")
	}
	return err
}

// connOptions splits a keyword=value string: values may stand in single quotes, a backslash
// takes the next character as it is, and spaces may surround the equals sign.
func connOptions(s string) (map[string]string, error) {
	options := map[string]string{}
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			return options, nil
		}
		i := strings.IndexByte(s, '=')
		if i < 0 {
			return options, errors.New(`it is neither a postgresql:// URL nor a list of keyword=value`)
		}
		key := strings.TrimSpace(s[:i])
		if key == "" || strings.ContainsAny(key, " \t\r\n'") {
			return options, errors.New(`a keyword is not followed by "="`)
		}
		value, rest, err := connValue(strings.TrimLeft(s[i+1:], " \t\r\n"))
		options[key] = value
		if err != nil {
			return options, err
		}
		s = rest
	}
}

func connValue(s string) (value, rest string, err error) {
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quoted && c == '\'':
			return b.String(), s[i+1:], nil
		case !quoted && strings.IndexByte(" \t\r\n", c) >= 0:
			return b.String(), s[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quoted {
		return b.String(), "", errors.New("a quoted value has no closing quote")
	}
	return b.String(), "", nil
}
