# Variables, locals, functions, files and every phase with steps of its own.
runbook "values" { required_version = "~> 1.0, != 1.1.0" }

variable "schemas" {
  type    = list(string)
  default = ["erp", "Billing"]
}

variable "workers" {
  type        = number
  default     = 8
  description = "connections of the load"
  validation {
    condition     = var.workers >= 1 && var.workers <= 32
    error_message = "Between 1 and 32, not ${var.workers}."
  }
}

variable "hooks_token" {
  type      = string
  sensitive = true
  default   = env("HOOKS_TOKEN")
}

variable "options" {
  type = object({
    chunk = optional(string, "64MiB")
    lag   = optional(string, "90s")
  })
  default  = {}
  nullable = false
}

variable "region" {
  default = local.regions[0]
}

locals {
  regions  = ["eu-1", "us-1"]
  patterns = [for s in var.schemas : "${ident(s)}.*"]
  host     = "erp.${var.region}.example.net"
}

source {
  inherit_env = true
}

target {
  url = "host=${local.host} dbname=erp user=migrator passfile=/etc/pgrunbook/pgpass"
}

schema {
  mode     = "existing"
  roles    = "skip"
  settings = false
  before {
    step "exec" "announce" {
      command = ["./notify.sh", "start"]
      env     = { TOKEN = var.hooks_token, REGION = var.region }
    }
  }
}

tables {
  include      = concat(local.patterns, ["audit.log_[0-9]*"])
  exclude      = ["*.tmp_?"]
  exclude_data = ["erp.\"Job Lock\""]
}

table "erp.big" {
  chunk  = "1.5GB"
  method = "pg_dump"
}

capture {
  after {
    step "notify" "captured" {
      url     = "https://hooks.example.net/${var.hooks_token}"
      message = "capture is on in ${var.region}"
    }
  }
}

copy {
  workers = var.workers
  chunk   = var.options.chunk
  after {
    step "sql" "fill" {
      on   = "target"
      file = "sql/after.sql"
    }
    step "sql" "again" {
      on        = "target"
      statement = file("sql/after.sql")
    }
  }
}

catch_up {
  before {
    step "wait" "quiet" { duration = "5m" }
  }
}

verify {
  enabled = false
  mode    = "count"
  workers = 1
}

limit "replica_lag" { max = var.options.lag }
limit "sessions" {
  max  = 200
  then = "stop"
}
limit "copy_rate" { max = "50MiB/s" }

cutover {
  max_write_block = "1500ms"
  retry_every     = "1m30s"
  window          = "22:30-04:00"
  closed_error    = "57014"
  closed_message  = "moved to ${local.host}"
  large_objects   = "ignore"
  read_only       = false
  end_sessions    = false
}

rollback {
  enabled = false
}

finish { source = "open" }
