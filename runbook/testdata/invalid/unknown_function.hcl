runbook "t" {}

source { service = "old" }
target { service = "new" }

locals {
  a = timestamp()
  b = uper("x")
  c = fetch_secret("y")
}
