package engine

// Phase is a fixed stage of the walk. Their order is the protocol's, not the file's.
type Phase string

// The phases of a forward migration, and the way back.
const (
	PhaseSchema   Phase = "schema"
	PhaseCapture  Phase = "capture"
	PhaseCopy     Phase = "copy"
	PhaseCatchUp  Phase = "catch_up"
	PhaseVerify   Phase = "verify"
	PhaseCutover  Phase = "cutover"
	PhaseRollback Phase = "rollback"
	PhaseFinish   Phase = "finish"
)

// Forward lists the phases that apply walks, in order.
func Forward() []Phase {
	return []Phase{PhaseSchema, PhaseCapture, PhaseCopy, PhaseCatchUp, PhaseVerify, PhaseCutover}
}

// Side names one of the two servers.
type Side string

// The two sides. Runner is where commands of the runbook run.
const (
	Source Side = "source"
	Target Side = "target"
	Runner Side = "runner"
)

// Other gives the opposite side.
func (s Side) Other() Side {
	if s == Source {
		return Target
	}
	return Source
}
