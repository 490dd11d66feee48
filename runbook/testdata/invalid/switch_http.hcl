runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  switch {
    step "http" "lb" {
      url = "https://lb.example.net/pools/shop"
    }
    step "http" "dns" {
      url     = "https://dns.example.net/shop"
      timeout = "1s"
      undo {
        url     = var.nowhere
        headers = { Authorization = "postgresql://u:hunter2@h/d" }
      }
    }
  }
}
