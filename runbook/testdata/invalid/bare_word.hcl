runbook "t" {}

source { service = "old" }
target { service = "new" }

verify { mode = hash }
