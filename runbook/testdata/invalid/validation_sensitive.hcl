runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "pw" {
  type      = string
  sensitive = true
  default   = join("", ["abc", "defgh"])
  validation {
    condition     = strlen(var.pw) > 20
    error_message = "Password ${var.pw} is too short."
  }
}
