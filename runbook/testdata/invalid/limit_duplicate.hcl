runbook "t" {}

source { service = "old" }
target { service = "new" }

limit "sessions" { max = 200 }
limit "sessions" { max = 300 }
