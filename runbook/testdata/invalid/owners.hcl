runbook "t" {}

source { service = "old" }
target { service = "new" }

schema {
  owners = { postgres = 5, app = null, erp = "" }
}

copy {
  before {
  }
}
