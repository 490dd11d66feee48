package runbook

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // a window's zone means the same on a machine without a zone database
)

// sizeUnits are the units of a size: the powers of 1024 by their IEC names, those of 1000 by
// their SI names. PostgreSQL's own "MB" means 1024 * 1024; here it is written MiB.
var sizeUnits = map[string]float64{
	"B":   1,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50,
	"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15,
}

const sizeForms = `write a number and a unit, such as "128MiB" or "200GiB" (KiB, MiB, GiB, TiB, PiB are powers of 1024; B, kB, MB, GB, TB, PB powers of 1000)`

// ParseSize reads a size such as "128MiB" or "1.5 GB" and returns bytes.
func ParseSize(text string) (int64, error) {
	text = strings.TrimSpace(text)
	digits := len(text) - len(strings.TrimLeft(text, "0123456789."))
	number, unit := text[:digits], strings.TrimSpace(text[digits:])
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no size; %s", text, sizeForms)
	}
	factor, ok := sizeUnits[unit]
	if !ok {
		return 0, fmt.Errorf("%q is no size: %s; %s", text, unitHint(unit), sizeForms)
	}
	if n *= factor; n >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is more than any disk holds; %s", text, sizeForms)
	}
	return int64(n), nil
}

// FormatSize writes bytes as ParseSize reads them, rounded.
func FormatSize(bytes float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; bytes >= 1024 && i < len(units)-1; i++ {
		bytes /= 1024
	}
	if i == 0 {
		return strconv.FormatFloat(bytes, 'f', 0, 64) + units[i]
	}
	return strconv.FormatFloat(bytes, 'f', 1, 64) + units[i]
}

func unitHint(unit string) string {
	if unit == "" {
		return "the unit is missing"
	}
	short := strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(unit), "b"), "i"))
	if full := short + "iB"; len(short) == 1 && sizeUnits[full] != 0 {
		return fmt.Sprintf("did you mean %s", strconv.Quote(full))
	}
	return fmt.Sprintf("there is no unit %q", unit)
}

const durationForms = `write a number and a unit, such as "500ms", "2s", "5m", "1h30m" or "3d"`

// ParseDuration reads a duration such as "500ms", "1h30m" or "3d". A day is 24 hours. Negative
// durations are refused.
func ParseDuration(text string) (time.Duration, error) {
	trimmed := strings.TrimSpace(text)
	days, rest := 0.0, trimmed
	if number, after, ok := strings.Cut(trimmed, "d"); ok {
		n, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no duration; %s", text, durationForms)
		}
		days, rest = n, after
	}
	var d time.Duration
	if rest != "" || days == 0 && trimmed == "" {
		var err error
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, fmt.Errorf("%q is no duration; %s", text, durationForms)
		}
	}
	total := days*float64(24*time.Hour) + float64(d)
	if days < 0 || d < 0 {
		return 0, fmt.Errorf("%q is a negative duration; %s", text, durationForms)
	}
	if math.IsNaN(total) || total >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is longer than 290 years; %s", text, durationForms)
	}
	if days == 0 {
		return d, nil
	}
	return time.Duration(total), nil
}

// ParseLimit reads the max of a limit of a kind in its base unit: bytes for delta_size, seconds
// for replica_lag, a count for sessions, bytes per second for copy_rate.
func ParseLimit(kind, text string) (float64, error) {
	switch kind {
	case "delta_size":
		n, err := ParseSize(text)
		return positive(float64(n), err)
	case "copy_rate":
		per, _ := strings.CutSuffix(strings.TrimSpace(text), "/s")
		n, err := ParseSize(per)
		if err != nil {
			return 0, fmt.Errorf("a rate is a size per second such as \"50MiB/s\": %w", err)
		}
		return positive(float64(n), nil)
	case "replica_lag":
		d, err := ParseDuration(text)
		return positive(d.Seconds(), err)
	case "sessions":
		n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31)
		if err != nil {
			return 0, fmt.Errorf("%q is no number of sessions; write a whole number such as \"200\"", text)
		}
		return positive(float64(n), nil)
	}
	return 0, fmt.Errorf("there is no limit %q; known are: %s", kind, quoteAll(limitKinds))
}

func positive(n float64, err error) (float64, error) {
	if err == nil && n <= 0 {
		return 0, fmt.Errorf("a limit must be more than zero")
	}
	return n, err
}

// Window is the time of day in which a cutover may hold writes.
type Window struct {
	from, to time.Duration // since midnight; to before from spans midnight
	zone     *time.Location
}

const windowForm = `write "02:00-05:00 Europe/Berlin": two times of 24 hours and an IANA time zone (without one it is UTC)`

// ParseWindow reads "HH:MM-HH:MM" with an optional IANA time zone. Without a zone it is UTC,
// so that runners on two machines agree. The end may lie before the start: then the window
// spans midnight.
func ParseWindow(text string) (Window, error) {
	span, zone, _ := strings.Cut(strings.TrimSpace(text), " ")
	first, second, ok := strings.Cut(span, "-")
	from, errFrom := clock(first)
	to, errTo := clock(second)
	if !ok || errFrom != nil || errTo != nil {
		return Window{}, fmt.Errorf("%q is no window; %s", text, windowForm)
	}
	if from == to {
		return Window{}, fmt.Errorf("the window %q is empty; %s, or leave window out for any time", text, windowForm)
	}
	zone = strings.TrimSpace(zone)
	loc, err := time.LoadLocation(zone)
	if err != nil || zone == "Local" {
		return Window{}, fmt.Errorf("%q is no IANA time zone; %s", zone, windowForm)
	}
	return Window{from: from, to: to, zone: loc}, nil
}

func clock(text string) (time.Duration, error) {
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != 5 {
		return 0, fmt.Errorf("%q is no time of day", text)
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, nil
}

// Contains reports whether t lies in the window: from the first minute up to, not including, the
// last.
func (w Window) Contains(t time.Time) bool {
	t = t.In(w.zone)
	now := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute +
		time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond())
	if w.from < w.to {
		return now >= w.from && now < w.to
	}
	return now >= w.from || now < w.to
}

// Length is how long the window is open on a day without a change of clocks.
func (w Window) Length() time.Duration {
	if w.from < w.to {
		return w.to - w.from
	}
	return 24*time.Hour - w.from + w.to
}

// End is when the window that contains t closes.
func (w Window) End(t time.Time) time.Time {
	local := t.In(w.zone)
	for day := range 3 {
		end := time.Date(local.Year(), local.Month(), local.Day()+day, int(w.to/time.Hour), int(w.to%time.Hour/time.Minute), 0, 0, w.zone)
		if end.After(t) {
			return end
		}
	}
	return t // not reached: a day has one end
}

// Next returns t when it lies in the window, else the next start of the window after t.
func (w Window) Next(t time.Time) time.Time {
	if w.Contains(t) {
		return t
	}
	local := t.In(w.zone)
	for day := range 3 {
		start := time.Date(local.Year(), local.Month(), local.Day()+day, int(w.from/time.Hour), int(w.from%time.Hour/time.Minute), 0, 0, w.zone)
		if start.After(t) {
			return start
		}
	}
	return t // not reached: a day has one start
}
