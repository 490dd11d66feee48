runbook "t" {}

variable "old" {
  type    = string
  default = env("OLD"
}

locals {
  workers = 4 +
}

source { url = var.old }

target {
  service = "new"
  sevice  = "typo"
}

tables {
  include = ["shop.*"

verify {
  mode = "hsah"
}

copy {
  workers = local.workers
  chunk   = var.chunk
}
