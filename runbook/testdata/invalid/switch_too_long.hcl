runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  max_write_block = "2s"
  switch {
    step "exec" "dns" {
      command = ["./dns.sh"]
      undo    = ["./dns.sh", "back"]
      timeout = "1500ms"
    }
    step "exec" "lb" {
      command = ["./lb.sh"]
      undo    = ["./lb.sh", "back"]
      timeout = "1s"
    }
  }
}
