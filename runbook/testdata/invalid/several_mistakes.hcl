runbook "t" { required_version = ">= 9" }

source { url = "postgresql://app:hunter2@old/erp" }

tables { include = ["orders"] }

copy {
  workers = 0
  chunk   = "128M"
  speed   = "fast"
}

verify { mode = "hsah" }

limit "lag" { max = "1s" }

cutover {
  window = "now"
  switch {
    step "exec" "dns" { command = ["./dns.sh"] }
  }
}

rolback { keep_for = "1h" }
