runbook "t" {}

source { url = "postgresql://app:hunter2@old/erp" }
target { url = "host=new dbname=erp password='hunt er2'" }
