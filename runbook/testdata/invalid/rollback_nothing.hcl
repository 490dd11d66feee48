runbook "t" {}

source { service = "old" }
target { service = "new" }

rollback {
  enabled         = false
  max_write_block = "1s"
}
