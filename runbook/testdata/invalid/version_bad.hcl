runbook "t" { required_version = "newest" }
source { service = "old" }
target { service = "new" }
