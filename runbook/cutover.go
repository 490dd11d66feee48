package runbook

import (
	"time"

	"github.com/hashicorp/hcl/v2"
)

// serverRefuses is read_only_sql_transaction: what a session that began read-only gets from the
// server itself, before any trigger fires.
const serverRefuses = "25006"

func (l *loader) loadCutover(b *Body, at hcl.Range) {
	c := &l.rb.Cutover
	c.Range = at
	c.Enabled = b.Bool("enabled", c.Enabled)
	c.MaxWriteBlock = b.Duration("max_write_block", c.MaxWriteBlock)
	boundBlock(b, c.MaxWriteBlock)
	c.Attempts = int(b.Int("attempts", int64(c.Attempts), 1))
	c.RetryEvery = b.Duration("retry_every", c.RetryEvery)
	c.SequenceMargin = b.Int("sequence_margin", c.SequenceMargin, 0)
	c.ClosedError = b.Enum("closed_error", c.ClosedError, "25006", "57014")
	c.LargeObjects = b.Enum("large_objects", c.LargeObjects, "refuse", "ignore")
	c.ReadOnly = b.Bool("read_only", c.ClosedError == serverRefuses)
	if b.Has("read_only") && c.ReadOnly && c.ClosedError != serverRefuses {
		b.Errorf("read_only", "Refused by the server", "With read_only = true new sessions begin read-only, and the server refuses their writes with SQLSTATE %s before the gate can raise closed_error = %q with closed_message. Leave read_only out, or closed_error.", serverRefuses, c.ClosedError)
	}
	c.EndSessions = b.Bool("end_sessions", c.EndSessions)
	if c.Window = b.String("window"); b.Known("window") {
		if w, err := ParseWindow(c.Window); err != nil {
			b.Errorf("window", "Bad window", "%s.", capitalize(err.Error()))
		} else if w.Length() < c.MaxWriteBlock {
			b.Errorf("window", "Window too short", "The window is open for %s, and writes may be held for max_write_block = %s: no attempt could begin in it. Make it longer, or max_write_block shorter.", w.Length(), c.MaxWriteBlock)
		}
	}
	if message := b.String("closed_message"); b.Known("closed_message") {
		if message == "" {
			b.Errorf("closed_message", "Empty message", "closed_message is what a refused writer reads. Write a sentence, or leave it out for the standard one.")
		}
		c.ClosedMessage = message
	}
}

// longestBlock bounds max_write_block: nobody holds writes for longer, and PostgreSQL's timeouts of that time
// are numbers of milliseconds in 32 bits.
const longestBlock = 24 * time.Hour

func boundBlock(b *Body, block time.Duration) {
	if block > longestBlock {
		b.Errorf("max_write_block", "Bad duration", "max_write_block is how long the application's writes may wait; more than %s is no freeze but an outage. Write for example \"2s\".", longestBlock)
	}
}

// poolerKinds are the connection poolers that a cutover can drive.
var poolerKinds = []string{"pgbouncer"}

func (l *loader) loadPoolers(content *hcl.BodyContent) {
	seen := map[string]hcl.Range{}
	for _, block := range content.Blocks.OfType("pooler") {
		p := Pooler{Kind: block.Labels[0], Name: block.Labels[1], Range: block.DefRange}
		if p.Kind != poolerKinds[0] {
			l.errorf(block.LabelRanges[0], "Unknown pooler", "There is no pooler kind %q. %s For another one write exec steps in before, switch and after.", p.Kind, didYouMean(p.Kind, poolerKinds))
		}
		l.checkName(block.LabelRanges[1], "pooler", p.Name)
		if first, ok := seen[p.Name]; ok {
			l.errorf(block.LabelRanges[1], "Duplicate pooler", "A pooler %q stands at %s already. Give this one another name.", p.Name, first)
		} else {
			seen[p.Name] = block.DefRange
		}
		b := l.newBody(l.content(block.Body, poolerSchema, "pooler"), block.DefRange)
		b.Require("admin", "database")
		p.Admin, _ = l.connString(b, "admin", "pooler_admin")
		p.Database = b.String("database")
		p.ConfigFile = b.String("config_file")
		p.Connect = b.String("connect")
		p.Timeout = b.Duration("timeout", 5*time.Second)
		if b.Has("config_file") != b.Has("connect") {
			l.errorf(block.DefRange, "Half a switch", "config_file is the file that is rewritten in the switch and connect is what the database entry says afterwards. Write both, or neither and repoint with steps.")
		}
		if pw, _ := connPassword(p.Connect); pw != "" {
			l.refusePassword(b.attrs["connect"].Expr, p.Connect, "connect", "Take it out: connect is written into the pooler's file as it stands; keep the password in the pooler's auth_file.")
		}
		l.add(b.Done())
		l.rb.Cutover.Poolers = append(l.rb.Cutover.Poolers, p)
	}
}
