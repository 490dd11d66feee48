package steps

import (
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// Slot is where in a phase a person's step stands.
type Slot string

// The three slots. Only the cutover has a switch.
const (
	Before Slot = "before"
	Switch Slot = "switch"
	After  Slot = "after"
)

// Place is a phase and a slot in it.
type Place struct {
	Phase engine.Phase
	Slot  Slot
}

// kind is one kind of step that people can write. decode must do without servers: in validate
// env holds the runbook alone.
type kind struct {
	name   string
	decode func(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics)
}

// kinds are all of them. A new kind is one file, its test, and one line here.
var kinds = []kind{
	{"approve", decodeApprove},
	{"exec", decodeExec},
	{"http", decodeHTTP},
	{"notify", decodeNotify},
	{"sql", decodeSQL},
	{"wait", decodeWait},
}

// Kinds lists the names of all kinds, for completion and documentation.
func Kinds() []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.name
	}
	return names
}

// decodeStep decodes one step block by its kind.
func decodeStep(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	for _, k := range kinds {
		if k.name != b.Kind {
			continue
		}
		s, diags := k.decode(env, place, b)
		if diags.HasErrors() {
			return nil, diags
		}
		return s, append(diags, checkSwitch(place, b)...)
	}
	detail := "Kinds of steps are: " + strings.Join(Kinds(), ", ") + "."
	if near := runbook.SuggestKind(b.Kind, Kinds()); near != "" {
		detail = fmt.Sprintf("Did you mean %q? %s", near, detail)
	}
	return nil, hcl.Diagnostics{{
		Severity: hcl.DiagError,
		Summary:  fmt.Sprintf("Unknown kind of step %q", b.Kind),
		Detail:   detail,
		Subject:  labelRange(b.KindRange, b.Range),
	}}
}

func labelRange(label, block hcl.Range) *hcl.Range {
	if label.Filename == "" && label.End.Byte == 0 {
		return &block
	}
	return &label
}
