runbook "erp to rds" {}
source { service = "old" }
target { service = "new" }

copy {
  after {
    step "exec" "a/b" { command = ["./x"] }
  }
}
