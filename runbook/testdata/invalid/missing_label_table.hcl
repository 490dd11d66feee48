runbook "t" {}

source { service = "old" }
target { service = "new" }

table {
  data = "none"
}
