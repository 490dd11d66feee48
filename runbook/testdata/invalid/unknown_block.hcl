runbook "t" {}

source { service = "old" }
target { service = "new" }

cutovr {
  attempts = 3
}
