# The oldest server in the house moves to the newest major. Everything goes: no tables block means
# every table, and sequences always go. The rows are loaded by hand, with load.sh.
runbook "major-upgrade" {
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
  roles = "create"
}

copy {
  method = "external" # ./load.sh; every later change is captured before it starts
}

verify { mode = "hash" } # proves somebody else's load

cutover {
  max_write_block = "3s"
  attempts        = 20
  retry_every     = "2s"
  sequence_margin = 1000
}
