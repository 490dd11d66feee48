runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  before {
    step "approve" "go" { message = "a" }
  }
  after {
    step "approve" "go" { message = "b" }
  }
}
