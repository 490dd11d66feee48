runbook "shop" {}

variable "source_url" {
  sensitive = true
  default   = env("SOURCE_URL")
}
variable "target_url" {
  sensitive = true
  default   = env("TARGET_URL")
}

source { url = var.source_url }
target { url = var.target_url }

tables { include = ["shop.*"] }
table "shop.job_log" { data = "at_freeze" } # no key, small: reloaded inside the freeze

cutover {
  max_write_block = "2s"
  before {
    step "approve" "go" { message = "Batch jobs stopped?" }
  }
}

rollback { keep_for = "72h" }
