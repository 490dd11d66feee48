package view

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/log"
	"github.com/charmbracelet/x/ansi"
	"github.com/muesli/termenv"
	"golang.org/x/term"
)

// LogOptions say how a log handler writes.
type LogOptions struct {
	Color   bool
	Verbose bool // also debug
	Quiet   bool // warnings and errors only
}

// LogHandler is the handler of charmbracelet/log that every line for people goes through.
func LogHandler(w io.Writer, o LogOptions) slog.Handler {
	level := log.InfoLevel
	switch {
	case o.Quiet:
		level = log.WarnLevel
	case o.Verbose:
		level = log.DebugLevel
	}
	l := log.NewWithOptions(w, log.Options{ReportTimestamp: true, TimeFormat: time.TimeOnly, Level: level})
	if o.Color {
		l.SetColorProfile(termenv.ANSI256)
	} else {
		l.SetColorProfile(termenv.Ascii)
	}
	return l
}

// UseColor decides on colour: NO_COLOR (https://no-color.org) when not empty, CLICOLOR_FORCE
// when neither empty nor 0 (https://bixense.com/clicolors), TERM=dumb, then whether the output is
// a terminal. "always" and "never" decide alone.
func UseColor(choice string, terminal bool, getenv func(string) string) bool {
	switch choice {
	case "always":
		return true
	case "never":
		return false
	}
	if getenv("NO_COLOR") != "" {
		return false
	}
	if f := getenv("CLICOLOR_FORCE"); f != "" && f != "0" {
		return true
	}
	return terminal && getenv("TERM") != "dumb"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

const defaultWidth = 100

// Columns is the width for a text that is printed to w: a terminal's own, else 100.
func Columns(w io.Writer) int { return widthOf(0, w) }

func widthOf(width int, w io.Writer) int {
	if width > 0 {
		return width
	}
	if f, ok := w.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			return columns
		}
	}
	return defaultWidth
}

// printable shows control characters instead of sending them: object names may hold any byte.
func printable(s string) string {
	bad := func(r rune) bool { return !unicode.IsPrint(r) }
	if strings.IndexFunc(s, bad) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString(" ↵ ")
		case r == '\t':
			b.WriteByte(' ')
		case bad(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// clip cuts a text to a number of columns.
func clip(s string, width int) string {
	if width <= 0 {
		return ""
	}
	return ansi.Truncate(s, width, "…")
}

// pad fills a text to a number of columns, or cuts it.
func pad(s string, width int) string {
	s = clip(s, width)
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

// bytesText gives "12.3 GiB".
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	if i == 0 {
		return strconv.FormatInt(n, 10) + " B"
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// countText gives "12.3 M".
func countText(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f G", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f M", float64(n)/1e6)
	case n >= 1e4:
		return fmt.Sprintf("%.1f k", float64(n)/1e3)
	}
	return strconv.FormatInt(n, 10)
}

// durationText gives "230ms", "4.2s", "3m12s", "5h07m" or "3d04h".
func durationText(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + durationText(-d)
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// noBreak stands for a hyphen while lines are wrapped: a command that was torn apart in its flags
// cannot be pasted.
const noBreak = "\ue000"

// wrap breaks a text into lines of at most width columns; the first has prefix, the others as many
// blanks.
func wrap(prefix, text string, width int) []string {
	indent := strings.Repeat(" ", ansi.StringWidth(prefix))
	room := max(20, width-ansi.StringWidth(prefix))
	var out []string
	whole := strings.ReplaceAll(printable(text), "-", noBreak)
	for i, l := range strings.Split(strings.ReplaceAll(ansi.Wrap(whole, room, ""), noBreak, "-"), "\n") {
		if i == 0 {
			out = append(out, prefix+l)
		} else {
			out = append(out, indent+l)
		}
	}
	return out
}
