runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "a" {
  default  = null
  nullable = false
}
