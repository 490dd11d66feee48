runbook "t" {}

source { service = "old" }
target { service = "new" }

finish {
  after {
    step "exec" "report" {
      command = ["psql", "postgresql://app:hunter2@new/erp"]
    }
  }
}
