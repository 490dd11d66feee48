runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  switch {
    step "exec" "dns" {
      command = ["./dns.sh"]
    }
  }
}
