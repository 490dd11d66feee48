runbook "t" {}

locals {
  pw = "hunter2"
}

source { url = "postgresql://app:${local.pw}@old/erp" }
target { service = "new" }
