runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "name" { default = "x" }

table "erp.${var.name}" { data = "none" }
