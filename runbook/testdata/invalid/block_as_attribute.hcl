runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover = {
  attempts = 3
}
