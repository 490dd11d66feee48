runbook "t" {}

source { service = "old" }
target { service = "new" }

finish {
  switch {
  }
}

pooler "pgbouncer" "x" {
}
