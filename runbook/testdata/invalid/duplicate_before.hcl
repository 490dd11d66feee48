runbook "t" {}

source { service = "old" }
target { service = "new" }

copy {
  before {
  }
  before {
  }
}
