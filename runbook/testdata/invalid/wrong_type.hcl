runbook "t" {}

source { service = "old" }
target { service = "new" }

copy {
  workers = "many"
  chunk = ["128MiB"]
}

tables {
  include = "erp.*"
}

schema {
  enabled = "yes"
  owners = ["postgres"]
}
