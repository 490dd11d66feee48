package runbook

import (
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// pure are the functions without a file or an environment behind them. The names are those of
// other HCL products. None depends on time or chance: a plan must not differ between two runs.
var pure = map[string]function.Function{
	"abs": stdlib.AbsoluteFunc, "ceil": stdlib.CeilFunc, "floor": stdlib.FloorFunc, "log": stdlib.LogFunc,
	"max": stdlib.MaxFunc, "min": stdlib.MinFunc, "parseint": stdlib.ParseIntFunc, "pow": stdlib.PowFunc, "signum": stdlib.SignumFunc,

	"chomp": stdlib.ChompFunc, "format": bounded(stdlib.FormatFunc), "formatlist": bounded(stdlib.FormatListFunc), "indent": bounded(stdlib.IndentFunc),
	"join": stdlib.JoinFunc, "lower": stdlib.LowerFunc, "regex": stdlib.RegexFunc, "regexall": stdlib.RegexAllFunc,
	"regex_replace": stdlib.RegexReplaceFunc, "replace": stdlib.ReplaceFunc, "split": stdlib.SplitFunc, "strlen": stdlib.StrlenFunc,
	"strrev": stdlib.ReverseFunc, "substr": stdlib.SubstrFunc, "title": stdlib.TitleFunc, "trim": stdlib.TrimFunc,
	"trimprefix": stdlib.TrimPrefixFunc, "trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc, "upper": stdlib.UpperFunc,

	"chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc,
	"compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc, "distinct": stdlib.DistinctFunc,
	"element": stdlib.ElementFunc, "flatten": stdlib.FlattenFunc, "index": stdlib.IndexFunc, "keys": stdlib.KeysFunc,
	"length": stdlib.LengthFunc, "lookup": stdlib.LookupFunc, "merge": stdlib.MergeFunc, "range": stdlib.RangeFunc,
	"reverse": stdlib.ReverseListFunc, "setintersection": stdlib.SetIntersectionFunc, "setproduct": stdlib.SetProductFunc,
	"setsubtract": stdlib.SetSubtractFunc, "setunion": stdlib.SetUnionFunc, "slice": stdlib.SliceFunc, "sort": stdlib.SortFunc,
	"values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,

	"csvdecode": stdlib.CSVDecodeFunc, "jsondecode": stdlib.JSONDecodeFunc, "jsonencode": stdlib.JSONEncodeFunc,
	"formatdate": stdlib.FormatDateFunc, "timeadd": stdlib.TimeAddFunc,
	"can": tryfunc.CanFunc, "try": tryfunc.TryFunc, "convert": typeexpr.ConvertFunc,
	"basename": textFunc(path.Base), "dirname": textFunc(path.Dir),
}

// functions returns the functions of one place in the file. Getenv is nil everywhere but in the
// default of a variable.
func functions(files *fileSet, env *envFunc) map[string]function.Function {
	out := maps.Clone(pure)
	maps.Copy(out, encodings)
	out["file"] = fileFunc(files)
	out["fileexists"] = fileExistsFunc(files)
	out["env"] = env.function(files)
	return out
}

// widest is the largest width, precision or indentation: a typing mistake must not take all memory.
const widest = 1000

var widths = regexp.MustCompile(`%[^%a-zA-Z]*[a-zA-Z]`)

// bounded is a function whose first argument says how wide its result is: a format, or a number.
func bounded(f function.Function) function.Function {
	return function.New(&function.Spec{
		Params: f.Params(), VarParam: f.VarParam(), Type: f.ReturnTypeForValues,
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if args[0].Type() == cty.Number && args[0].IsKnown() && !args[0].IsNull() && args[0].AsBigFloat().Cmp(big.NewFloat(widest)) > 0 {
				return cty.NilVal, fmt.Errorf("at most %d characters", widest)
			}
			if args[0].Type() == cty.String && args[0].IsKnown() && !args[0].IsNull() {
				for _, verb := range widths.FindAllString(args[0].AsString(), -1) {
					for _, number := range strings.FieldsFunc(verb, func(r rune) bool { return r < '0' || r > '9' }) {
						if n, err := strconv.Atoi(number); err != nil || n > widest {
							return cty.NilVal, fmt.Errorf("%s is wider than %d characters", verb, widest)
						}
					}
				}
			}
			return f.Call(args)
		},
	})
}

func textFunc(f func(string) string) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "text", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return cty.StringVal(f(args[0].AsString())), nil
		},
	})
}

// fileFunc reads a text file. The path may be sensitive: then the content is too.
func fileFunc(files *fileSet) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String, AllowMarked: true}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			name, marks := args[0].Unmark()
			if !name.IsKnown() {
				return cty.UnknownVal(cty.String).WithMarks(marks), nil
			}
			data, err := files.read(name.AsString(), len(marks) > 0)
			if errors.Is(err, errNoFile) {
				return cty.UnknownVal(cty.String).WithMarks(marks), nil
			}
			if err != nil {
				return cty.NilVal, err
			}
			if !utf8.Valid(data) {
				return cty.NilVal, fmt.Errorf("%s is not UTF-8 text", name.AsString())
			}
			return cty.StringVal(string(data)).WithMarks(marks), nil
		},
	})
}

func fileExistsFunc(files *fileSet) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			name := path.Clean(args[0].AsString())
			if _, ok := files.pinned[name]; ok {
				return cty.True, nil
			}
			info, err := os.Stat(files.path(name))
			return cty.BoolVal(err == nil && info.Mode().IsRegular()), nil
		},
	})
}

// envFunc is env() in the default of one variable.
type envFunc struct {
	variable string
	lookup   func(string) (string, bool)
	validate bool
}

const envOutside = "env() works only in the default of a variable"

func (e *envFunc) function(files *fileSet) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "name", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			name := args[0].AsString()
			if e == nil {
				files.envUsed = true
				return cty.NilVal, errors.New(envOutside)
			}
			if value, ok := e.lookup(name); ok {
				return cty.StringVal(value), nil
			}
			if e.validate {
				return cty.UnknownVal(cty.String), nil
			}
			return cty.NilVal, fmt.Errorf("%s is not set in the environment; set it, or set PGRUNBOOK_VAR_%s, or pass --var %s=VALUE", name, e.variable, e.variable)
		},
	})
}

// checkEnvCalls reports env() outside the default of a variable by looking at the syntax: the
// value of try(env("X"), "x") would not show it.
func (l *loader) checkEnvCalls(root *hclsyntax.Body) {
	allowed := map[hclsyntax.Node]bool{}
	for _, block := range root.Blocks {
		if attr := block.Body.Attributes["default"]; block.Type == "variable" && attr != nil {
			_ = hclsyntax.VisitAll(attr.Expr, func(n hclsyntax.Node) hcl.Diagnostics {
				allowed[n] = true
				return nil
			})
		}
	}
	_ = hclsyntax.VisitAll(root, func(n hclsyntax.Node) hcl.Diagnostics {
		if call, ok := n.(*hclsyntax.FunctionCallExpr); ok && call.Name == "env" && !allowed[n] {
			l.diags = append(l.diags, envDiagnostic(call.StartRange()))
		}
		return nil
	})
}

const envSummary = "env() outside a variable"

func isEnvDiagnostic(d *hcl.Diagnostic) bool { return d.Summary == envSummary }

func envDiagnostic(at hcl.Range) *hcl.Diagnostic {
	return newError(at, envSummary, envOutside+`, so that a reader finds every input at the top. Declare variable "x" { default = env("NAME") } and write var.x here.`)
}

// never are functions that other products have and a runbook must not.
var never = []string{"timestamp", "plantimestamp", "now", "uuid", "uuidv4", "bcrypt", "random", "rand"}

// explainFunctions puts function mistakes into our words.
func explainFunctions(diags hcl.Diagnostics) {
	for _, d := range diags {
		if unknown, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallUnknownDiagExtra](d); ok {
			name := unknown.CalledFunctionName()
			d.Summary = "Unknown function"
			if slices.Contains(never, name) {
				d.Detail = fmt.Sprintf("There is no %s(): a plan must not differ between two runs, so nothing in a runbook depends on time or chance. Pass the value with --var.", name)
				continue
			}
			names := slices.Sorted(maps.Keys(functions(nil, nil)))
			if s := SuggestKind(name, names); s != "" {
				d.Detail = fmt.Sprintf("There is no function %q. Did you mean %q?", name, s)
			} else {
				d.Detail = fmt.Sprintf("There is no function %q. There are: %s.", name, strings.Join(names, ", "))
			}
			continue
		}
		if call, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallDiagExtra](d); ok && call.FunctionCallError() != nil {
			name, msg := call.CalledFunctionName(), call.FunctionCallError().Error()
			switch {
			case name == "env" && msg == envOutside && d.Subject != nil:
				*d = *envDiagnostic(*d.Subject)
			case name == "env":
				d.Summary, d.Detail = "Environment variable not set", capitalize(msg)+"."
			case name == "file":
				d.Summary, d.Detail = "Cannot read the file", capitalize(msg)+"."
			}
		}
	}
}
