runbook "t" {}

source { service = "old" }
target { service = "new" }

dynamic "table" {
  for_each = ["a"]
  content {}
}

copy {
  after {
    dynamic "step" {
      for_each = ["a"]
      content {}
    }
  }
}
