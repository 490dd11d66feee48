runbook "t" {}

source { service = "old" }
target { service = "new" }

locals {
  a = try(env("HOME"), "x")
}

copy { workers = env("WORKERS") }
