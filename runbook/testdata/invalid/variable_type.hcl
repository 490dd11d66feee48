runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "n" {
  type    = number
  default = "many"
}

variable "m" { type = "string" }
variable "o" { type = text }
