runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  max_write_block = "30m"
  window          = "23:50-00:10"
}
