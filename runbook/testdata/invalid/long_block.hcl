runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover { max_write_block = "100000d" }

rollback { max_write_block = "25h" }
