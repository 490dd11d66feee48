# Database alpha moves to a newer major on the same host: the old server on port 5555, the new and
# empty one on port 5566. One table is huge and goes over while people work; the others are small
# and go over inside the freeze.
runbook "inplace-upgrade" {
  required_version = ">= 0.1"
}

variable "source_url" {
  type      = string
  sensitive = true
  default   = env("SOURCE_URL")
}

variable "target_url" {
  type      = string
  sensitive = true
  default   = env("TARGET_URL")
}

source { url = var.source_url }
target { url = var.target_url }

schema {
  roles = "create" # what pg_dumpall --schema-only did: roles and structure, no rows
}

table "public.pgbench_*" { data = "at_freeze" }   # small: reloaded inside the freeze
table "public.pgbench_accounts" { data = "live" } # 13 TB: an exact name beats the pattern

copy {
  workers = 2
  chunk   = "4MiB"
}

cutover {
  max_write_block = "2s"
  attempts        = 20
  retry_every     = "2s"

  before {
    step "approve" "downtime" {
      message = "The new server is warm. Is the batch run over, and may writes be held for a moment?"
    }
  }
  switch { # writes are held on both sides, every row is over
    step "exec" "point-application" {
      command = ["./point-application.sh", "new"]
      undo    = ["./point-application.sh", "old"]
      timeout = "1s"
    }
  }
}

rollback {
  keep_for = "24h"

  before {
    step "approve" "back" { message = "Writes go back to the old server. Really?" }
  }
}

finish {
  before {
    step "approve" "farewell" { message = "The old server is no longer needed. Is there a backup of the new one?" }
  }
}
