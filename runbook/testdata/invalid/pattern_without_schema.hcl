runbook "t" {}

source { service = "old" }
target { service = "new" }

tables {
  include = ["orders", "erp.*"]
  exclude = ["tmp_*"]
}

table "orders" { data = "none" }
