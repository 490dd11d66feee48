# The runbook of `pgrunbook demo`: pgbench's tables and a small shop move to a newer major while
# clients write all the time.
runbook "demo" {
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

tables {
  include = ["public.*", "shop.*", "ledger.*"]
}

table "shop.job_log" { data = "at_freeze" } # no key, small: reloaded inside the freeze

copy {
  method  = "stream"
  workers = 2
  chunk   = "32MiB"
}

verify { mode = "hash" }

cutover {
  max_write_block = "2s"
  attempts        = 20
  retry_every     = "2s"
  sequence_margin = 1000
}

rollback { keep_for = "72h" }
