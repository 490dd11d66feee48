runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "token" {
  sensitive = true
  default   = "hunter2-token"
}
