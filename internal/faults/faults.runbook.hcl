runbook "faults" { required_version = ">= 0.1" }

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

tables { include = ["app.*", "ledger.*"] }
table "app.jobs" { data = "at_freeze" }
table "app.trail" { identity = "append_only" }
table "app.bag" { identity = "full_row" }

copy {
  workers = 2
  chunk   = "64KiB"
}

cutover {
  max_write_block = "5s" # two shared cores
  attempts        = 40
  retry_every     = "300ms"
  sequence_margin = 100

  switch {
    step "exec" "repoint" {
      command = ["/bin/true"]
      undo    = ["/bin/true"]
      timeout = "1s"
    }
  }
}

rollback { keep_for = "1h" }
