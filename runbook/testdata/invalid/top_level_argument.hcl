runbook "t" {}

source { service = "old" }
target { service = "new" }

max_write_block = "2s"
