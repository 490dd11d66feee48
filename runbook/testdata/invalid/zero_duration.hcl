runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover { max_write_block = "0s" }
