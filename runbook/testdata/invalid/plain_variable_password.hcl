runbook "t" {}

variable "old_url" {
  type    = string
  default = "postgresql://app:hunter2@old/erp"
}

source { url = var.old_url }
target { service = "new" }
