package runbook

import (
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// setDefaults fills in what a runbook that leaves everything out means.
func setDefaults(rb *Runbook) {
	rb.Schema = Schema{Enabled: true, Mode: "restore", Roles: "require", OnDDL: "stop", Settings: true}
	rb.Copy = Copy{Method: "stream", Workers: 4, Chunk: 128 << 20}
	rb.Verify = Verify{Enabled: true, Mode: "hash", Workers: 2}
	rb.Cutover = Cutover{
		Enabled: true, MaxWriteBlock: 2 * time.Second, Attempts: 20, RetryEvery: 15 * time.Second,
		SequenceMargin: 1000, ClosedError: serverRefuses,
		ClosedMessage: "this database has moved to another server: reconnect and try again",
		LargeObjects:  "refuse", ReadOnly: true, EndSessions: true,
	}
	rb.Rollback = Rollback{Enabled: true}
	rb.Finish = Finish{Source: "closed"}
}

// loadBlocks decodes everything but variables and locals.
func (l *loader) loadBlocks(content *hcl.BodyContent) {
	l.loadHeader(content)
	l.rb.Source = l.loadServer(content, "source")
	l.rb.Target = l.loadServer(content, "target")
	l.checkServers()
	if block := l.single(content, "tables"); block != nil {
		l.loadTables(block)
	}
	l.loadRules(content)
	l.loadLimits(content)
	readers := map[string]func(*Body, hcl.Range){
		"schema": l.loadSchema, "copy": l.loadCopy, "verify": l.loadVerify,
		"rollback": l.loadRollback, "finish": l.loadFinish, "cutover": l.loadCutover,
	}
	for _, phase := range phaseNames {
		block := l.single(content, phase)
		if block == nil {
			continue
		}
		inner := l.content(block.Body, phaseSchemas[phase], phase)
		if read := readers[phase]; read != nil {
			b := l.newBody(inner, block.DefRange)
			read(b, block.DefRange)
			l.add(b.Done())
		}
		l.loadSteps(phase, inner)
		if phase == "cutover" {
			l.loadPoolers(inner)
		}
	}
	l.checkSwitch() // once both budgets are known
	l.checkProof()
}

func (l *loader) loadHeader(content *hcl.BodyContent) {
	header := l.single(content, "runbook")
	if header == nil {
		if l.hasBlock("runbook") {
			return // it lacks its label, which is reported
		}
		l.errorf(content.MissingItemRange, "Missing runbook block", "A runbook starts with its name, which stands in plans and reports. Write runbook \"erp-to-rds\" { }.")
		return
	}
	l.rb.Name = header.Labels[0]
	l.checkName(header.LabelRanges[0], "runbook", l.rb.Name)
	b := l.newBody(l.content(header.Body, runbookSchema, "runbook"), header.DefRange)
	l.rb.RequiredVersion = b.String("required_version")
	if l.rb.RequiredVersion != "" {
		if err := checkVersion(l.rb.RequiredVersion, l.opts.ToolVersion); err != nil {
			b.Errorf("required_version", "Version does not fit", "%s.", capitalize(err.Error()))
		} else if l.opts.ToolVersion == "dev" {
			l.diags = append(l.diags, &hcl.Diagnostic{
				Severity: hcl.DiagWarning, Summary: "Version not checked", Subject: b.attrs["required_version"].Expr.Range().Ptr(),
				Detail: "This is a development build, which has no number: it is not held to required_version. Use a released build where the version matters.",
			})
		}
	}
	l.add(b.Done())
}

func (l *loader) loadSchema(b *Body, at hcl.Range) {
	s := &l.rb.Schema
	s.Range = at
	s.Enabled = b.Bool("enabled", s.Enabled)
	s.Mode = b.Enum("mode", s.Mode, "restore", "existing")
	s.Roles = b.Enum("roles", s.Roles, "create", "require", "skip")
	s.Owners = b.Map("owners")
	s.OnDDL = b.Enum("on_ddl", s.OnDDL, "carry", "stop")
	s.Settings = b.Bool("settings", s.Settings)
	for from, to := range s.Owners {
		if from == "" || to == "" {
			b.Errorf("owners", "Empty role name", "owners maps a role of the source to a role of the target, such as { postgres = \"erp_owner\" }. Neither may be empty.")
		}
	}
}

func (l *loader) loadCopy(b *Body, at hcl.Range) {
	c := &l.rb.Copy
	c.Range = at
	c.Method = b.Enum("method", c.Method, copyMethods...)
	c.Workers = int(b.Int("workers", int64(c.Workers), 1))
	c.Chunk = b.Size("chunk", c.Chunk)
	checkWorkers(b, c.Workers)
}

// checkWorkers refuses what no server of ours has connections for.
func checkWorkers(b *Body, n int) {
	if n > maxWorkers {
		b.Errorf("workers", "Too many workers", "%d workers need a connection each on both servers. Write at most %d; more do not make two servers faster.", n, maxWorkers)
	}
}

const maxWorkers = 1024

func (l *loader) loadVerify(b *Body, at hcl.Range) {
	v := &l.rb.Verify
	v.Range = at
	v.Enabled = b.Bool("enabled", v.Enabled)
	v.Mode = b.Enum("mode", v.Mode, "hash", "count")
	v.Workers = int(b.Int("workers", int64(v.Workers), 1))
	checkWorkers(b, v.Workers)
}

// checkProof asks for the full comparison where rows come from a load that is not ours.
func (l *loader) checkProof() {
	v := l.rb.Verify
	if v.Enabled && v.Mode == "hash" {
		return
	}
	external := l.rb.Copy.Method == "external"
	for _, rule := range l.rb.Rules {
		external = external || rule.Method == "external"
	}
	if external {
		l.errorf(v.Range, "A load without a proof", "method = \"external\" lets somebody else load rows, and only the comparison by hash shows that all of them are there. Remove enabled = false and mode from verify.")
	}
}

func (l *loader) loadRollback(b *Body, at hcl.Range) {
	r := &l.rb.Rollback
	r.Range = at
	r.Enabled = b.Bool("enabled", r.Enabled)
	r.KeepFor = b.DurationOrZero("keep_for", r.KeepFor)
	if !r.Enabled && r.KeepFor > 0 {
		b.Errorf("keep_for", "Nothing to keep", "keep_for says how long the way back stays open, and enabled = false closes it. Remove one of them.")
	}
	r.MaxWriteBlock = b.Duration("max_write_block", 0)
	boundBlock(b, r.MaxWriteBlock)
	if !r.Enabled && r.MaxWriteBlock > 0 {
		b.Errorf("max_write_block", "Nothing to bound", "max_write_block says how long writes may wait on the way back, and enabled = false closes it. Remove one of them.")
	}
}

func (l *loader) loadFinish(b *Body, at hcl.Range) {
	l.rb.Finish.Range = at
	l.rb.Finish.Source = b.Enum("source", l.rb.Finish.Source, "closed", "open")
}

// limitKinds are the figures that a limit may bound.
var limitKinds = []string{"delta_size", "replica_lag", "sessions", "copy_rate"}

// LimitKinds names every kind of limit.
func LimitKinds() []string { return slices.Clone(limitKinds) }

// LimitThen is what a limit of a kind does when nothing else is said.
func LimitThen(kind string) string {
	if kind == "copy_rate" {
		return "slow" // a rate is kept by going slower, not by stopping
	}
	return "pause"
}

func (l *loader) loadLimits(content *hcl.BodyContent) {
	seen := map[string]hcl.Range{}
	for _, block := range content.Blocks.OfType("limit") {
		limit := Limit{Kind: block.Labels[0], Range: block.DefRange}
		b := l.newBody(l.content(block.Body, limitSchema, "limit"), block.DefRange)
		known := false
		for _, kind := range limitKinds {
			known = known || kind == limit.Kind
		}
		if !known {
			l.errorf(block.LabelRanges[0], "Unknown limit", "There is no limit %q. %s", limit.Kind, didYouMean(limit.Kind, limitKinds))
		}
		b.Require("max")
		limit.Max = b.String("max")
		if known && b.Known("max") {
			value, err := ParseLimit(limit.Kind, limit.Max)
			if err != nil {
				b.Errorf("max", "Bad limit", "%s.", capitalize(err.Error()))
			}
			limit.Value = value
		}
		limit.Then = b.Enum("then", LimitThen(limit.Kind), "slow", "pause", "stop")
		key := limit.Kind + " " + limit.Then
		if first, ok := seen[key]; ok {
			l.errorf(block.DefRange, "Duplicate limit", "A limit %q that ends in %q stands at %s already. Remove one, or give it another then.", limit.Kind, limit.Then, first)
		} else {
			seen[key] = block.DefRange
		}
		l.add(b.Done())
		l.rb.Limits = append(l.rb.Limits, limit)
	}
}
