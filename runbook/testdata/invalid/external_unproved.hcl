runbook "t" {}

source { service = "old" }
target { service = "new" }

table "erp.big" { method = "external" }

verify { mode = "count" }
