runbook "t" {}

source { service = "old" }
target { service = "new" }

step "exec" "x" { command = ["./x"] }
