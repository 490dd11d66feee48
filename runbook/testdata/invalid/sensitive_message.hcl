runbook "t" {}

source { service = "old" }
target { service = "new" }

variable "pw" {
  sensitive = true
  default   = env("PW")
}

cutover {
  closed_message = "moved: ${var.pw}"
  before {
    step "approve" "go" { message = "go with ${var.pw}?" }
  }
}

tables { include = ["erp.${var.pw}"] }
