runbook "t" {}

source { service = "old" }
target { service = "new" }

copy { chunk = "128M" }

table "erp.a" { chunk = "big" }
table "erp.b" { chunk = 1024 }
table "erp.c" { chunk = "0MiB" }

limit "delta_size" { max = "200 gigs" }
