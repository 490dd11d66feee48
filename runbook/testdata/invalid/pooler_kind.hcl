runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  pooler "pgbouncr" "main" {
    admin       = "host=/run/pgbouncer"
    database    = "erp"
    config_file = "/etc/pgbouncer/databases.ini"
  }
  pooler "pgbouncer" "main" {
    admin = "host=/run/pgbouncer"
  }
}
