runbook "t" {}

source { service = "old" }
target { service = "new" }

table "erp.a" {
  key      = []
  identity = "full_row"
}
table "erp.b" {
  key      = ["id", "id"]
  identity = "full_row"
}
table "erp.c" {}
