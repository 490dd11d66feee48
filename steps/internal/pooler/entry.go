package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// An entry is one database of a PgBouncer file: NAME = CONNSTR. The positions are those of the
// file's text, so that everything else can be kept byte by byte. The reading is that of
// PgBouncer's own parser: comments stand on lines of their own, nothing continues a line.
type entry struct {
	name       string
	start      int // of the name
	valueStart int
	valueEnd   int // without white space at the end
}

// entries lists the databases. A file that is %include'd inside a section has no header of its
// own: what stands before the first one is taken for databases.
func entries(text []byte) ([]entry, error) {
	var out []entry
	section := "databases"
	for i := skip(text, 0, " \t\r\n\v\f"); i < len(text); i = skip(text, i, " \t\r\n\v\f") {
		eol := i + lineLength(text[i:])
		switch {
		case text[i] == '#' || text[i] == ';' || bytes.HasPrefix(text[i:], []byte("%include")):
			i = eol
		case text[i] == '[':
			end := bytes.IndexByte(text[i:eol], ']')
			if end < 0 {
				return nil, syntaxError(text, i)
			}
			section, i = string(text[i+1:i+end]), i+end+1
		default:
			name, after, ok := cutName(text[:eol], i)
			equals := skip(text[:eol], after, " \t")
			if !ok || equals >= eol || text[equals] != '=' {
				return nil, syntaxError(text, i)
			}
			start := skip(text[:eol], equals+1, " \t")
			end := start + len(bytes.TrimRight(text[start:eol], " \t\r\v\f"))
			if section == "databases" {
				out = append(out, entry{name: name, start: i, valueStart: start, valueEnd: end})
			}
			i = eol
		}
	}
	return out, nil
}

func skip(text []byte, i int, what string) int {
	for i < len(text) && strings.IndexByte(what, text[i]) >= 0 {
		i++
	}
	return i
}

func lineLength(text []byte) int {
	if n := bytes.IndexByte(text, '\n'); n >= 0 {
		return n
	}
	return len(text)
}

// syntaxError does not quote the line, which may hold a password.
func syntaxError(text []byte, i int) error {
	return fmt.Errorf("line %d is neither NAME = VALUE, [section], %%include nor a comment", 1+bytes.Count(text[:i], []byte{'\n'}))
}

// cutName reads a name: bare, in double quotes as the manual has it, or in single quotes as release
// 1.25 reads it (1.18 reads neither kind).
func cutName(text []byte, i int) (name string, after int, ok bool) {
	quote := text[i]
	if quote != '"' && quote != '\'' {
		for after = i; after < len(text) && bareName(text[after]); after++ {
		}
		return string(text[i:after]), after, after > i
	}
	var b strings.Builder
	for i++; i < len(text); i++ {
		if text[i] == quote {
			if quote != '"' || i+1 >= len(text) || text[i+1] != quote {
				return b.String(), i + 1, b.Len() > 0
			}
			i++
		}
		b.WriteByte(text[i])
	}
	return "", i, false
}

func bareName(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.-*", c) >= 0
}

// pair is one key=value of a connection string; raw is its text as it stands.
type pair struct {
	key, value string
	start, end int
}

func (p pair) raw(connstr string) string { return connstr[p.start:p.end] }

// pairs reads a connection string as PgBouncer does: values end at a space or stand in single
// quotes, where two stand for one.
func pairs(connstr string) ([]pair, error) {
	var out []pair
	for i := skip([]byte(connstr), 0, " \t"); i < len(connstr); i = skip([]byte(connstr), i, " \t") {
		p := pair{start: i}
		for i < len(connstr) && connstr[i] != '=' && connstr[i] != ' ' {
			i++
		}
		p.key = connstr[p.start:i]
		i = skip([]byte(connstr), i, " \t")
		if i >= len(connstr) || connstr[i] != '=' || p.key == "" {
			return nil, errors.New("it is no list of key=value")
		}
		var ok bool
		if p.value, i, ok = cutValue(connstr, skip([]byte(connstr), i+1, " \t")); !ok {
			return nil, fmt.Errorf("%s has no value, or its quotes do not end", p.key)
		}
		p.end = i
		out = append(out, p)
	}
	return out, nil
}

func cutValue(s string, i int) (value string, after int, ok bool) {
	if i >= len(s) || s[i] != '\'' {
		end := i
		for end < len(s) && s[end] != ' ' {
			end++
		}
		return s[i:end], end, end > i
	}
	var b strings.Builder
	for i++; i < len(s); i++ {
		if s[i] == '\'' {
			if i+1 >= len(s) || s[i+1] != '\'' {
				return b.String(), i + 1, b.Len() > 0
			}
			i++
		}
		b.WriteByte(s[i])
	}
	return "", i, false
}

// quoteValue writes a value so that pairs reads it back.
func quoteValue(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t'") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

// last finds the pair that counts: of two with one key the later one wins.
func last(ps []pair, key string) (pair, bool) {
	for _, p := range slices.Backward(ps) {
		if p.key == key {
			return p, true
		}
	}
	return pair{}, false
}

// placeOf gives where an entry leads, with PgBouncer's defaults.
func placeOf(name string, ps []pair) (Place, error) {
	at := Place{Port: 5432, Database: name}
	for _, p := range ps {
		switch p.key {
		case "host":
			at.Host = p.value
		case "port":
			port, err := strconv.Atoi(p.value)
			if err != nil {
				return Place{}, errors.New("its port is not a number")
			}
			at.Port = port
		case "dbname":
			at.Database = p.value
		case "user":
			at.User = p.value
		}
	}
	return at, nil
}

// parseConnect reads the runbook's connect. No value is put into an error: it may be a password
// in the wrong place.
func parseConnect(connect string) ([]pair, error) {
	ps, err := pairs(connect)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	for i, p := range ps {
		if !slices.Contains([]string{"host", "port", "dbname", "user"}, p.key) {
			return nil, errors.New("connect may give host, port, dbname and user only; everything else stays as the entry has it")
		}
		if slices.ContainsFunc(ps[:i], func(o pair) bool { return o.key == p.key }) {
			return nil, fmt.Errorf("connect gives %s twice", p.key)
		}
		if strings.ContainsAny(p.value, "\r\n") {
			return nil, fmt.Errorf("connect: %s has a line break", p.key)
		}
	}
	_, err = placeOf("", ps)
	return ps, err
}
