runbook "t" {}

source { service = "old" }
target { service = "new" }

copy {
  workers = 2
  workers = 3
}
