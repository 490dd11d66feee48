runbook {}
source { service = "old" }
target { service = "new" }
