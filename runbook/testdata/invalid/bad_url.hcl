runbook "t" {}

source { url = "mysql://old/erp" }
target { url = "newhost" }
