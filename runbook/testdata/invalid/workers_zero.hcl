runbook "t" {}

source { service = "old" }
target { service = "new" }

copy { workers = 0 }
verify { workers = -2 }
