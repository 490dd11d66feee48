package steps

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

func TestExecRunsBesideTheRunbookWithACleanEnvironment(t *testing.T) {
	t.Setenv("LEAK", "leaked")
	t.Setenv("PGRUNBOOK_VAR_password", "leaked")
	dir := t.TempDir()
	writeScript(t, dir, "show.sh", "env; echo \"arg: $1\"; echo oops >&2; echo s=$SECRET; pwd\n")
	env := &Env{}
	env.Run.ID = "r1"
	s := oneStep(t, env, Before, dir, "step \"exec\" \"show\" {\n command = [\"./show.sh\", \"a b\"]\n env = { SECRET = var.secret }\n }", map[string]string{"SECRET": "hunter22"})
	cp := &paper{}
	if err := apply(t, s, cp); err != nil {
		t.Fatal(err)
	}
	got := cp.text()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"arg: a b", "stderr oops", "PGRUNBOOK_RUN=r1", "PGRUNBOOK_STEP=copy.before.exec.show", "PGRUNBOOK_RUNBOOK=test", "s=(sensitive)", real} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q:\n%s", want, got)
		}
	}
	for _, never := range []string{"leaked", "hunter22"} {
		if strings.Contains(got, never) {
			t.Errorf("output holds %q:\n%s", never, got)
		}
	}
}

// A program that is not there would be noticed in the freeze, at the worst time.
func TestExecPlanNamesAProgramThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, dir, "here.sh", "true\n")
	if err := os.WriteFile(filepath.Join(dir, "plain.sh"), []byte("true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		`["./here.sh"]`:         "",
		`["true"]`:              "",
		`["./nowhere.sh"]`:      "no such file or directory",
		`["./plain.sh"]`:        "permission denied",
		`["no-such-program-x"]`: "not found",
	} {
		s := oneStep(t, &Env{}, Before, dir, "step \"exec\" \"x\" {\n command = "+command+"\n undo = [\"./here.sh\"]\n }", nil)
		p, err := s.Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, h := range p.Hazards[1:] {
			all = append(all, h.Text)
		}
		if got := strings.Join(all, "; "); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: hazards %q, want %q", command, got, want)
		}
	}
}

func TestExecTellsWhyItFailed(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, dir, "fail.sh", "for i in 1 2 3 4; do echo line $i; done; echo 'no route for hunter22' >&2; echo 'asked twice'; exit 3\n")
	s := oneStep(t, &Env{}, Before, dir, "step \"exec\" \"x\" {\n command = [\"./fail.sh\"]\n env = { S = var.secret }\n }", map[string]string{"SECRET": "hunter22"})
	err := apply(t, s, &paper{})
	for _, want := range []string{"exit status 3", ": no route for (sensitive) (standard output: line 3; line 4; asked twice)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in the error: %v", want, err)
		}
	}
	if err == nil || strings.Contains(err.Error(), "line 1") || strings.Contains(err.Error(), "hunter22") {
		t.Errorf("error is %v", err)
	}
	if engine.HintOf(err) == "" {
		t.Error("no hint")
	}
}

// A long line is cut, and with it a secret in it: what is left of that is a part of the secret.
func TestExecHidesASecretThatIsCut(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, dir, "long.sh", "printf '%4090s%s%s\\n' '' \"$S\" ' and more'; echo \"next $S\"; exit 3\n")
	s := oneStep(t, &Env{}, Before, dir, "step \"exec\" \"x\" {\n command = [\"./long.sh\"]\n env = { S = var.secret }\n }", map[string]string{"SECRET": "hunter22"})
	cp := &paper{}
	err := apply(t, s, cp)
	if got := cp.text(); err == nil || strings.Contains(got+err.Error(), "hun") || !strings.Contains(got, "  (sensitive) \n") || !strings.Contains(got, "next (sensitive)") {
		t.Errorf("the output is shown as %q, the error is %v", got, err)
	}
}

// The child must die with the command: it would write the file after the timeout.
func TestR26ExecKillsTheWholeGroupOnTimeout(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, dir, "slow.sh", "trap '' TERM\n(trap '' TERM; echo $$ >started; sleep 60; echo late >late) &\nwait\n")
	s := oneStep(t, &Env{}, Switch, dir, "step \"exec\" \"x\" {\n command = [\"./slow.sh\"]\n undo = [\"true\"]\n timeout = \"500ms\"\n }", nil)
	err := apply(t, s, &paper{})
	if err == nil || !strings.Contains(err.Error(), "timeout of 500ms") {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "started")); err != nil {
		t.Fatalf("the child never ran: %v", err)
	}
	if out := processesIn(t, dir); out != "" {
		t.Errorf("still running: %s", out)
	}
}

// processesIn lists processes whose working directory is dir.
func processesIn(t *testing.T, dir string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for range 50 { // a killed process needs a moment to be reaped
		found = nil
		for _, l := range links {
			if cwd, err := os.Readlink(l); err == nil && cwd == dir {
				found = append(found, l)
			}
		}
		if found == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return strings.Join(found, " ")
}

func TestExecEndsWithItsContext(t *testing.T) {
	s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"exec\" \"x\" {\n command = [\"sleep\", \"60\"]\n }", nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("interrupted")
	time.AfterFunc(50*time.Millisecond, func() { cancel(stop) })
	if err := s.Apply(ctx, engine.StepPlan{}, &paper{}); !errors.Is(err, stop) {
		t.Errorf("error is %v", err)
	}
}

func TestExecUndo(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, dir, "dns.sh", "echo \"$1 undo=$PGRUNBOOK_UNDO\" >>log\n")
	s := oneStep(t, &Env{}, Switch, dir, "step \"exec\" \"dns\" {\n command = [\"./dns.sh\", \"new\"]\n undo = [\"./dns.sh\", \"old\"]\n timeout = \"1s\"\n }", nil)
	if err := apply(t, s, &paper{}); err != nil {
		t.Fatal(err)
	}
	if err := s.(engine.Undoer).Undo(t.Context(), &paper{}); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil || string(log) != "new undo=\nold undo=1\n" {
		t.Errorf("log is %q, %v", log, err)
	}
}

func TestExecRefusesAChangedFile(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, dir, "dns.sh", "echo hi\n")
	env := &Env{}
	s := oneStep(t, env, Before, dir, "step \"exec\" \"dns\" {\n command = [\"./dns.sh\"]\n }", nil)
	data, ok := env.Runbook.Files["dns.sh"]
	if !ok {
		t.Fatalf("dns.sh is not pinned: %v", sortedKeys(env.Runbook.Files))
	}
	env.Plan = &engine.Plan{Runbook: engine.RunbookPin{Files: map[string]string{"dns.sh": fileDigest(data)}}}
	if err := apply(t, s, &paper{}); err != nil {
		t.Fatal(err)
	}
	writeScript(t, dir, "dns.sh", "echo something else\n")
	if err := apply(t, s, &paper{}); engine.ClassOf(err) != engine.ClassStale {
		t.Errorf("error is %v", err)
	}
}

func TestExecSensitiveWordIsRefused(t *testing.T) {
	rb := parsed(t, t.TempDir(), sheet("variable \"p\" {\n type = string\n sensitive = true\n default = env(\"SECRET\")\n}\ncopy {\n before {\n step \"exec\" \"x\" { command = [\"login\", var.p] }\n }\n}"), map[string]string{"SECRET": "hunter22"})
	diags := Check(rb)
	if got := printed(t, rb, diags); !diags.HasErrors() || !strings.Contains(got, "ensitive") || strings.Contains(got, "hunter22") {
		t.Errorf("got %s", got)
	}
}
