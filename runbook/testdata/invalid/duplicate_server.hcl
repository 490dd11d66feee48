runbook "t" {}

source { service = "old" }
target { service = "new" }

source { service = "older" }
