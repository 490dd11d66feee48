runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "workers" { type = number }

copy { workers = var.workers }
