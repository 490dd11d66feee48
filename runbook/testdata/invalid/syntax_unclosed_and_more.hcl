runbook "t" {}

source { service = "old" }

cutover {
  max_write_block = "2s"

  before {
    step "approve" "go" { message = "Batch jobs stopped?" }

rollback {
  keep_for = "three days"
}
