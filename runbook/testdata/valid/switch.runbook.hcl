runbook "small" {}

source { service = "old" }
target { service = "new" }

variable "lb_token" {
  type      = string
  sensitive = true
  default   = env("LB_TOKEN")
}

cutover {
  switch {
    step "http" "lb" {
      url     = "https://lb.example.net/pools/shop"
      method  = "PUT"
      headers = { Authorization = "Bearer ${var.lb_token}" }
      body    = jsonencode({ member = "new" })
      timeout = "1s"
      undo { # what is not given is as above
        body = jsonencode({ member = "old" })
      }
    }
  }
}
