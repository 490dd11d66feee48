runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "token" {
  sensitive = true
  default   = join("-", ["hunter2", "key"])
}

variable "login" {
  sensitive = true
  default   = { user = "app", password = "hunter2" }
}

variable "url" {
  sensitive = true
  default   = "postgresql://app@old/erp"
}
