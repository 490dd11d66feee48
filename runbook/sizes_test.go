package runbook

import (
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"1B": 1, "128MiB": 128 << 20, "200GiB": 200 << 30, "1.5KiB": 1536, "2 TiB": 2 << 40, "1PiB": 1 << 50,
		"1kB": 1000, "1KB": 1000, "3MB": 3e6, "1.5GB": 1.5e9, "1TB": 1e12, " 0B ": 0,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "MiB", "128", "128M", "128mb", "128mib", "-1MiB", "1e3MiB", "1.2.3MiB", "9999999PiB", "1MiB/s", "∞GiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"500ms": 500 * time.Millisecond, "2s": 2 * time.Second, "1h30m": 90 * time.Minute, "3d": 72 * time.Hour, "1d12h": 36 * time.Hour,
		"0.5d": 12 * time.Hour, "0s": 0, "0": 0,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q is %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "5", "2 s", "-1s", "1d-2h", "d", "3 days", "5min", "1000000d", "NaNd", "Infd"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is read as %s", text, got)
		}
	}
}

func TestWindow(t *testing.T) {
	at := func(text string) time.Time {
		moment, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return moment
	}
	for _, tc := range []struct {
		window, now, next string
		inside            bool
	}{
		{"02:00-05:00", "2026-11-20T01:59:59Z", "2026-11-20T02:00:00Z", false},
		{"02:00-05:00", "2026-11-20T02:00:00Z", "2026-11-20T02:00:00Z", true},
		{"02:00-05:00", "2026-11-20T05:00:00Z", "2026-11-21T02:00:00Z", false},
		{"22:30-04:00", "2026-11-20T23:00:00Z", "2026-11-20T23:00:00Z", true},
		{"22:30-04:00", "2026-11-20T03:59:00Z", "2026-11-20T03:59:00Z", true},
		{"22:30-04:00", "2026-11-20T12:00:00Z", "2026-11-20T22:30:00Z", false},
		{"02:00-05:00 Europe/Berlin", "2026-11-20T01:30:00Z", "2026-11-20T01:30:00Z", true},
		{"02:00-05:00 Europe/Berlin", "2026-07-20T04:00:00Z", "2026-07-21T00:00:00Z", false},
	} {
		w, err := ParseWindow(tc.window)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Contains(at(tc.now)); got != tc.inside {
			t.Errorf("%s at %s: %v", tc.window, tc.now, got)
		}
		if got := w.Next(at(tc.now)); !got.Equal(at(tc.next)) {
			t.Errorf("%s after %s begins %s, want %s", tc.window, tc.now, got, tc.next)
		}
	}
	for _, tc := range []struct {
		window, now, end string
		length           time.Duration
	}{
		{"02:00-05:00", "2026-11-20T04:59:30Z", "2026-11-20T05:00:00Z", 3 * time.Hour},
		{"22:30-04:00", "2026-11-20T23:00:00Z", "2026-11-21T04:00:00Z", 5*time.Hour + 30*time.Minute},
		{"22:30-04:00", "2026-11-21T03:00:00Z", "2026-11-21T04:00:00Z", 5*time.Hour + 30*time.Minute},
		{"22:00-00:00", "2026-11-21T23:00:00Z", "2026-11-22T00:00:00Z", 2 * time.Hour},
		{"02:00-05:00 Europe/Berlin", "2026-11-20T01:30:00Z", "2026-11-20T04:00:00Z", 3 * time.Hour},
	} {
		w, err := ParseWindow(tc.window)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.End(at(tc.now)); !got.Equal(at(tc.end)) {
			t.Errorf("%s at %s ends %s, want %s", tc.window, tc.now, got, tc.end)
		}
		if got := w.Length(); got != tc.length {
			t.Errorf("%s is open for %s, want %s", tc.window, got, tc.length)
		}
	}
	for _, text := range []string{"", "2:00-5:00", "02:00", "02:00-25:00", "02:00-05:00 Mars/Base", "02:00-05:00 Local", "02:00-05:00-06:00", "05:00-05:00"} {
		if _, err := ParseWindow(text); err == nil {
			t.Errorf("%q is a window", text)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for _, tc := range []struct {
		constraint, tool string
		ok               bool
	}{
		{">= 1.0", "1.2.0", true},
		{">= 1.0", "v1.0.0", true},
		{">= 1.3", "1.2.9", false},
		{"1.2", "1.2.0", true},
		{"= 1.2", "1.2.1", false},
		{"!= 1.2.0", "1.2.0", false},
		{"> 1.2", "1.2.0", false},
		{"< 2, >= 1", "1.9.9", true},
		{"<= 1.2", "1.2.1", false},
		{"~> 1.2", "1.9.0", true},
		{"~> 1.2", "2.0.0", false},
		{"~> 1.2.3", "1.2.9", true},
		{"~> 1.2.3", "1.3.0", false},
		{"~> 1", "1.9", true},
		{">= 99", "dev", true},
		{">= 99", "", true},
		{">= 1.2", "1.2.0-rc1", true},
		{"new", "1.2.0", false},
		{"=> 1", "dev", false},
		{"", "1.2.0", false},
		{">= 1.2.3.4", "dev", false},
		{"~> 1, two", "dev", false},
	} {
		if err := checkVersion(tc.constraint, tc.tool); (err == nil) != tc.ok {
			t.Errorf("%q on %q: %v", tc.constraint, tc.tool, err)
		}
	}
}
