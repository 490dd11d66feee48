runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  max_write_block = "4s"
  switch {
    step "exec" "dns" {
      command = ["./dns.sh"]
      undo    = ["./dns.sh", "back"]
      timeout = "1500ms"
    }
  }
}

rollback { max_write_block = "1s" }
