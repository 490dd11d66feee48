runbook "t" {}

source { service = "old" }
target {
  service               = "new"
  replica_role_function = "set_role"
  password_command      = []
}
