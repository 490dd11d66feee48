package runbook

import (
	"crypto/md5"  //nolint:gosec // a function of the language, not used to protect anything
	"crypto/sha1" //nolint:gosec // as above
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// encodings are the text functions that go-cty's standard library does not have.
var encodings = map[string]function.Function{
	"base64encode": textFunc(func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }),
	"base64decode": fallibleFunc(decodeBase64),
	"urlencode":    textFunc(url.QueryEscape),
	"md5":          hashFunc(md5.New),
	"sha1":         hashFunc(sha1.New),
	"sha256":       hashFunc(sha256.New),
	"sha512":       hashFunc(sha512.New),
	"ident":        identFunc,
	"literal":      textFunc(quoteLiteral),
}

func hashFunc(newHash func() hash.Hash) function.Function {
	return textFunc(func(s string) string {
		h := newHash()
		h.Write([]byte(s))
		return hex.EncodeToString(h.Sum(nil))
	})
}

func fallibleFunc(f func(string) (string, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "text", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			s, err := f(args[0].AsString())
			if err != nil {
				return cty.NilVal, err
			}
			return cty.StringVal(s), nil
		},
	})
}

func decodeBase64(s string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("the text is not base64: %w", err)
	}
	if !utf8.Valid(data) {
		return "", errors.New("the decoded bytes are not UTF-8 text")
	}
	return string(data), nil
}

// identFunc joins SQL identifiers, each in double quotes: ident("erp", "Order") is "erp"."Order".
var identFunc = function.New(&function.Spec{
	VarParam: &function.Parameter{Name: "names", Type: cty.String},
	Type:     function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		if len(args) == 0 {
			return cty.NilVal, errors.New("at least one name is needed")
		}
		parts := make([]string, len(args))
		for i, a := range args {
			parts[i] = `"` + strings.ReplaceAll(a.AsString(), `"`, `""`) + `"`
		}
		return cty.StringVal(strings.Join(parts, ".")), nil
	},
})

// quoteLiteral writes a SQL string constant. A backslash needs the E form, which means the same
// whatever standard_conforming_strings says (PostgreSQL docs, "String Constants").
func quoteLiteral(s string) string {
	quoted := "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + quoted
	}
	return quoted
}
