runbook "t" {}

source { service = "old" }
target { service = "new" }

tables {
  include      = ["db.erp.orders", "erp.", "erp.\"open", "erp.(a", "erp.a b", ""]
  exclude_data = ["pg_catalog.*"]
}
