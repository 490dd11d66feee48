runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  pooler "pgbouncer" "main" {
    admin    = "host=/run/pgbouncer password=hunter2 dbname=pgbouncer"
    database = "erp"
  }
}
