runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "url" {
  sensitive = true
  default   = env("NOT_SET_URL")
}
