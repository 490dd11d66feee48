runbook "t" {}

source { service = "old" }
target { service = "new" }

rollback {
  enabled  = false
  keep_for = "72h"
}
