runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  closed_error = "57014"
  read_only    = true
}
