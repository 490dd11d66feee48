runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "a" { default = local.b }

locals {
  b = local.c
  c = var.a
}
