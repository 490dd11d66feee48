runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "workers" {
  type    = number
  default = 100
  validation {
    condition     = var.workers <= 32
    error_message = "At most 32 workers, not ${var.workers}."
  }
  validation {
    condition     = "perhaps"
    error_message = "x"
  }
  validation {
    error_message = "x"
  }
}
