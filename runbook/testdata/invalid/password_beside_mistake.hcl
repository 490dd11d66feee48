runbook "t" {}

source { ulr = "postgresql://app:hunter2@old/erp" }
target { service = "new" }
