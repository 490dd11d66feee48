runbook "t" {}

source { service = "old" }
target { service = "new" }

schema {
  owners {
    postgres = "erp_owner"
  }
}
