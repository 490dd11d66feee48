runbook "t" {}

source { service = "old" }
target { service = "new" }

copy {
  after {
    step "exec" {
      command = ["./x"]
    }
  }
}
