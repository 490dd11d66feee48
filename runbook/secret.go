package runbook

import (
	"github.com/zclconf/go-cty/cty"
)

// Secret is text that may come from a sensitive value. Printing it, also as part of a struct or
// as JSON, shows it only when it is not sensitive.
type Secret struct {
	value  string
	hidden bool
}

// NewSecret wraps a text that another process has unwrapped.
func NewSecret(text string, sensitive bool) Secret { return Secret{text, sensitive} }

// Reveal returns the text, for use and not for output.
func (s Secret) Reveal() string { return s.value }

// Sensitive reports whether the text must not be printed.
func (s Secret) Sensitive() bool { return s.hidden }

func (s Secret) String() string {
	if s.hidden {
		return hidden
	}
	return s.value
}

// GoString keeps %#v from showing the text.
func (s Secret) GoString() string { return s.String() }

// MarshalText writes what String shows.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Sensitive returns text that may be sensitive, or an empty Secret.
func (b *Body) Sensitive(name string) Secret {
	v := b.value(name)
	if v == cty.NilVal {
		return Secret{}
	}
	marked := v.ContainsMarked()
	b.note(v)
	v, _ = v.UnmarkDeep()
	if v = b.typed(name, v, cty.String, "text in quotes"); v == cty.NilVal {
		return Secret{}
	}
	return Secret{value: v.AsString(), hidden: marked}
}

// SensitiveMap returns text by name where each text may be sensitive, or nil.
func (b *Body) SensitiveMap(name string) map[string]Secret {
	v := b.value(name)
	if v == cty.NilVal {
		return nil
	}
	b.note(v)
	all := v.IsMarked()
	v, _ = v.Unmark()
	if v.IsNull() || !v.IsKnown() {
		return nil
	}
	plain, _ := v.UnmarkDeep()
	if b.typed(name, plain, cty.Map(cty.String), `text by name, such as { a = "b" }`) == cty.NilVal {
		return nil
	}
	out := map[string]Secret{}
	for key, element := range v.AsValueMap() {
		text, marks := element.Unmark()
		if text.IsNull() || !text.IsKnown() {
			continue
		}
		if text = b.typed(name, text, cty.String, "text in quotes"); text != cty.NilVal {
			out[key] = Secret{value: text.AsString(), hidden: all || len(marks) > 0}
		}
	}
	return out
}

func (b *Body) note(v cty.Value) {
	if b.secrets != nil {
		b.secrets.addMarked(v)
	}
}
