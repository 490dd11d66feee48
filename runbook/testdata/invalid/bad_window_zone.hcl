runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover { window = "02:00-05:00 Europe/Berlinn" }
