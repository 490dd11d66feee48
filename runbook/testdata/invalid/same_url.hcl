runbook "t" {}

source { url = "postgresql://old/erp" }
target { url = "postgresql://old/erp" }
