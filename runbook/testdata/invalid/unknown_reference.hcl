runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "source_url" { default = "a" }

locals {
  dir = local.dri
}

copy {
  workers = var.workers
  method  = var.source_ulr
  chunk   = each.value
}
verify { mode = var }
