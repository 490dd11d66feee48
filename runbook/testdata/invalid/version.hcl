runbook "t" { required_version = ">= 2.0" }
source { service = "old" }
target { service = "new" }
