runbook "t" {}

source { service = "old" }
target { service = "new" }

locals {
  a = "${local.a}x"
}
