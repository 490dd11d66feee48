# A second server beside the first, kept near it. No cutover: the first stays the one that takes
# writes for as long as you like.
runbook "second-server" {
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
  roles  = "create"
  on_ddl = "carry" # it runs for long: compatible changes of the application go along
}

# Tables that wait for the freeze would wait for ever here, so the one without a key is followed
# row by row.
table "shop.movement" { identity = "full_row" }

copy { workers = 2 }

verify { mode = "hash" }

cutover { enabled = false }
