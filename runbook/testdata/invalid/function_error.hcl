runbook "t" {}

source { service = "old" }
target { service = "new" }

locals {
  a = parseint("zz", 10)
  b = file("missing.sql")
  c = file("../load.go")
}
