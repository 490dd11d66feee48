runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  max_write_block = "2 sec"
  retry_every     = "-5s"
}

rollback { keep_for = "three days" }
