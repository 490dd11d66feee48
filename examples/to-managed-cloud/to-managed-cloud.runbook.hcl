# A shop moves to a managed cloud: no superuser there, and a password that a command prints.
runbook "to-managed-cloud" {
  required_version = ">= 0.1"
}

variable "source_url" {
  type      = string
  sensitive = true
  default   = env("SOURCE_URL")
}

variable "target_url" {
  type        = string
  description = "Without a password: password_command has it."
  default     = env("TARGET_URL")
}

source { url = var.source_url }

target {
  url                   = var.target_url
  password_command      = ["./cloud-token.sh"]
  replica_role_function = "public.rds_session_replication_role"
}

schema {
  roles  = "require"
  owners = { shop_owner = "app" } # names of the two worlds
}

tables {
  exclude      = ["shop.tmp_*", "shop.import_buffer"] # neither structure nor rows
  exclude_data = ["shop.job_lock"]                    # exists there, empty
}

# Tables without a key. A small one (shop.audit_note) needs no word: it is reloaded in the freeze.
table "shop.page_view" { identity = "append_only" }

copy {
  method  = "pg_dump"
  workers = 8
}

verify { mode = "hash" }

cutover {
  max_write_block = "3s"
  attempts        = 20
  retry_every     = "2s"
  sequence_margin = 1000
}

rollback { keep_for = "72h" }
