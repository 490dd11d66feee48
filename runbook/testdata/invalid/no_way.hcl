runbook "t" {}

source { apply_role = "migrator" }
target {
  service = "new"
  url     = "postgresql://new/erp"
}
