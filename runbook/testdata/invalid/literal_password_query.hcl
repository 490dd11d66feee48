runbook "t" {}

source { url = "postgresql://old/erp?user=app&password=hunter2" }
target { url = "postgresql://app:hun/ter2@new/erp" }
