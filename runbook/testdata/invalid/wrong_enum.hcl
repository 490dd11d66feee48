runbook "t" {}

source { service = "old" }
target { service = "new" }

schema {
  mode = "restor"
  roles = "created"
  on_ddl = "ignore"
}

verify { mode = "hsah" }

table "erp.*" {
  data = "at-freeze"
  identity = "append"
  method = "psql"
}
