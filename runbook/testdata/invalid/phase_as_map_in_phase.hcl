runbook "t" {}

source { service = "old" }
target { service = "new" }

schema {
  before = []
}
