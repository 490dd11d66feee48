runbook "erp-to-rds" { required_version = ">= 1.0" }

variable "source_url" {
  type      = string
  sensitive = true
  default   = env("SOURCE_URL")
}

source {
  url        = var.source_url
  apply_role = "migrator" # plan may connect read-only; rights are checked for this role
}

target {
  url                   = "postgresql://migrator@erp.example.net/erp?sslmode=verify-full"
  password_command      = ["./rds-token.sh"]
  replica_role_function = "public.rds_session_replication_role"
}

schema {
  roles  = "require" # create | require | skip
  owners = { postgres = "erp_owner" }
  on_ddl = "carry" # compatible changes while it runs; every other kind stops, named
}

tables {
  include      = ["erp.*", "billing.*", "audit.*"]
  exclude      = ["erp.tmp_*"]    # neither structure nor rows, never gated
  exclude_data = ["erp.job_lock"] # exists there, empty
}

table "erp.ref_*" { data = "at_freeze" }                 # small: reloaded inside the freeze
table "billing.invoice_item" { key = ["invoice", "no"] } # unique, not primary
table "audit.page_views" { identity = "append_only" }    # 500 GB without a key; or "full_row"

copy {
  method  = "stream" # stream | pg_dump | external; also per table
  workers = 12
  chunk   = "128MiB"
}

verify { mode = "hash" } # live, before the approval; the freeze proves only what changed since

limit "delta_size" {
  max  = "200GiB"
  then = "pause" # slow | pause | stop; also replica_lag, sessions, copy_rate
}

cutover {
  max_write_block = "2s"
  window          = "02:00-05:00 Europe/Berlin"
  attempts        = 20
  sequence_margin = 1000

  pooler "pgbouncer" "main" { # PAUSE before the hold, file and RELOAD in the switch, RESUME once a side is open or on any failure
    admin       = "host=/run/pgbouncer port=6432 dbname=pgbouncer"
    database    = "erp"
    config_file = "/etc/pgbouncer/databases.ini"
    connect     = "host=erp.example.net port=5432"
  }

  before {
    step "approve" "go" { message = "Batch jobs stopped?" }
  }
  switch { # writes are held on both sides, all rows are there
    step "exec" "dns" {
      command = ["./dns.sh", "rds"]
      undo    = ["./dns.sh", "onprem"] # when the freeze undoes itself, and as the switch of a rollback
      timeout = "1s"
    }
  }
  after {
    step "http" "health" {
      url     = "https://shop.example.com/healthz"
      retries = 30
    }
  }
}

rollback { keep_for = "72h" } # finish refuses earlier without --now

finish {
  after {
    step "sql" "rename" {
      on        = "target"
      statement = "ALTER SCHEMA erp RENAME TO core"
    }
  }
}
