runbook "t" {}

source { inherit_env = true }
target { inherit_env = true }
