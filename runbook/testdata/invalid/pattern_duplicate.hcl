runbook "t" {}

source { service = "old" }
target { service = "new" }

tables {
  include = ["erp.*", "ERP.*"]
}

table "erp.orders" { data = "none" }
table "erp.\"orders\"" { data = "live" }
