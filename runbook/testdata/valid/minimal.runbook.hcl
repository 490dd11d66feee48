runbook "small" {}

source { service = "old" }
target { service = "new" }
