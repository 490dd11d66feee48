# A migration in a pipeline: one job copies and compares, a person looks, the next job cuts over.
runbook "ci-two-jobs" {
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

source { url = var.source_url }
target { url = var.target_url }

copy { workers = 2 }

cutover {
  max_write_block = "2s"
  attempts        = 20
  retry_every     = "2s"

  before {
    step "approve" "go" {
      message = "The copy is compared. Cut over?"
      expires = "2h" # a word from yesterday is no word
    }
  }
}

rollback { keep_for = "24h" }
