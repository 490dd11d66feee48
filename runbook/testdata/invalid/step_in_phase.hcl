runbook "t" {}

source { service = "old" }
target { service = "new" }

copy {
  step "exec" "x" { command = ["./x"] }
}
