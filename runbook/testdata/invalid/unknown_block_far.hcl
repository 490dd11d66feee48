runbook "t" {}

source { service = "old" }
target { service = "new" }

deployment {
  attempts = 3
}
