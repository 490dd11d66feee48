runbook "t" {}

source { service = "old" }
target { service = "new" }

limit "delta_siz" { max = "1GiB" }
limit "sessions" { max = "many" }
limit "replica_lag" { max = "10MiB" }
limit "copy_rate" {
  max  = "fast"
  then = "halt"
}
limit "delta_size" {}
limit "sessions" { max = 0 }
