# A cutover behind PgBouncer: clients wait a moment in the pooler and go on at the new server.
# Nobody sees an error.
runbook "pgbouncer-cutover" {
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

variable "pooler_admin" {
  type    = string
  default = env("POOLER_ADMIN")
}

variable "pooler_file" {
  type    = string
  default = "/etc/pgbouncer/databases.ini"
}

variable "new_place" {
  type    = string
  default = "host=new.example.com port=5432"
}

source { url = var.source_url }
target { url = var.target_url }

copy { workers = 2 }

cutover {
  max_write_block = "10s"
  attempts        = 20
  retry_every     = "1s"

  pooler "pgbouncer" "main" {
    admin       = var.pooler_admin # of a user in admin_users
    database    = "bank"
    config_file = var.pooler_file # on this machine; one block for each pooler
    connect     = var.new_place
    timeout     = "5s" # for PAUSE, while transactions end
  }
}

rollback { keep_for = "24h" }
