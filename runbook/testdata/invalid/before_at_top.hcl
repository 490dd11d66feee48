runbook "t" {}

source { service = "old" }
target { service = "new" }

before {
}

source_hooks {
}
