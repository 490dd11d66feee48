package view

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/pgrunbook/pgrunbook/engine"
)

// liveTables is how many tables the live block shows.
const liveTables = 8

// liveBlockers is how many of those in the way have a line in it.
const liveBlockers = 3

// narrow is the width below which bars are short, so that the figures have room.
const narrow = 80

// tty keeps a live block below the lines that stay.
type tty struct {
	o       Options
	handler slog.Handler
	width   func() int
	color   bool
	model   model
	drawn   []int // columns of each line of the block on the screen
	pending bytes.Buffer
	still   bool // nothing is drawn: a person is asked something
}

func newTTY(o Options, lo LogOptions, width func() int) *tty {
	t := &tty{o: o, width: width, color: lo.Color}
	t.handler = o.NewHandler(writerFunc(func(p []byte) { t.pending.Write(p) }), lo)
	return t
}

// write puts lines above the block.
func (t *tty) write(p []byte) {
	t.pending.Write(p)
	t.draw(t.o.Now())
}

func (t *tty) event(e engine.Event, now time.Time) {
	t.model.event(e, now)
	switch e.Kind {
	case engine.EventProgress, engine.EventTable, engine.EventLag:
		return // the next tick shows it
	case engine.EventStepSkipped:
		if !t.o.Verbose {
			return
		}
	case engine.EventStepStarted:
		t.draw(now) // the block shows it; its line comes when it is done
		return
	case engine.EventWaiting:
		if levelOf(e) < slog.LevelWarn { // the block shows it
			t.draw(now)
			return
		}
	default:
	}
	logEvent(t.handler, e)
	t.draw(now)
}

func (t *tty) tick(now time.Time) { t.draw(now) }

// draw replaces the block: up and erase, the lines that stay, the block anew (ECMA-48 CUU, ED).
func (t *tty) draw(now time.Time) {
	if t.still {
		return
	}
	block := t.block(now)
	if t.pending.Len() == 0 && len(block) == 0 && len(t.drawn) == 0 {
		return
	}
	var b bytes.Buffer
	t.erase(&b)
	b.Write(t.pending.Bytes())
	t.pending.Reset()
	for _, l := range block {
		b.WriteString(l + "\n")
		t.drawn = append(t.drawn, ansi.StringWidth(l))
	}
	_, _ = t.o.Stderr.Write(b.Bytes())
}

// erase takes the block away. A terminal that became narrower has wrapped its lines meanwhile.
func (t *tty) erase(b io.Writer) {
	lines, width := 0, max(1, t.width())
	for _, columns := range t.drawn {
		lines += max(1, (columns+width-1)/width)
	}
	if lines > 0 {
		fmt.Fprintf(b, "\x1b[%dA\r\x1b[J", lines)
	}
	t.drawn = t.drawn[:0]
}

// suspend erases the block, or draws it again with the lines that waited.
func (t *tty) suspend(on bool, now time.Time) {
	if on && !t.still {
		t.erase(t.o.Stderr)
	}
	t.still = on
	t.draw(now)
}

// block is the step that runs: a head line, a bar of all, a bar for each of the largest tables.
func (t *tty) block(now time.Time) []string {
	s := t.model.step
	if s == nil {
		return nil
	}
	width := t.width() - 1 // a full last column would wrap
	elapsed := now.Sub(s.started)
	var out []string
	line := func(text string) { out = append(out, clip(text, width)) }
	line(t.bold(printable(string(s.id))) + "  " + printable(s.title) + "  " + durationText(elapsed))
	wideBar, bar := 30, 16
	if width < narrow {
		wideBar, bar = 12, 6
	}
	if _, ok := s.all.share(); ok {
		line("  " + t.bar(&s.all, wideBar) + " " + s.all.fit(elapsed, width-wideBar-3))
	} else if text := s.all.fit(elapsed, width-2); text != "" {
		line("  " + text)
	}
	active := t.model.active(liveTables)
	wide := 0
	for _, a := range active {
		wide = max(wide, len([]rune(printable(a.name))))
	}
	wide = min(wide, max(16, width/3))
	for _, a := range active {
		line("  " + pad(printable(a.name), wide) + " " + t.bar(&a.amount, bar) + " " + a.fit(now, width-wide-bar-4))
	}
	if more := len(t.model.tables) - len(active); more > 0 || len(t.model.done) > 0 {
		line(fmt.Sprintf("  %s done, %d more under way", engine.Plural(len(t.model.done), "table"), max(0, more)))
	}
	if t.model.lag != "" {
		line("  " + printable(t.model.lag))
	}
	if t.model.waiting != "" {
		line("  " + t.yellow("waiting: "+printable(t.model.waiting)))
		for _, who := range t.model.inWay[:min(liveBlockers, len(t.model.inWay))] {
			line("    " + t.yellow("in the way: "+printable(who)))
		}
	}
	return out
}

func (t *tty) bar(a *amount, width int) string {
	share, ok := a.share()
	if !ok {
		return strings.Repeat("·", width)
	}
	full := int(share * float64(width))
	return t.green(strings.Repeat("█", full)) + strings.Repeat("░", width-full)
}

func (t *tty) paint(code, s string) string {
	if !t.color || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (t *tty) bold(s string) string   { return t.paint("1", s) }
func (t *tty) green(s string) string  { return t.paint("32", s) }
func (t *tty) yellow(s string) string { return t.paint("33", s) }

func (t *tty) summary(s Summary, now time.Time) {
	t.model, t.still = model{}, false
	for _, l := range timingTable(s) {
		t.pending.WriteString(l + "\n")
	}
	closing(t.handler, s, now, func(l string) { t.pending.WriteString(t.bold(l) + "\n") })
	t.draw(now)
}
