runbook "t" {}

source { service = "old" }
target { service = "new" }

tables { include = [] }
