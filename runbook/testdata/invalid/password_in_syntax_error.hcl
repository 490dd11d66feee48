runbook "t" {}

source { url = "postgresql://app:hunter2@old/erp }
