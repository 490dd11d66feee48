runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover { window = "2-5 Berlin" }
