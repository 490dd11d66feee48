package testpg

// RunbookServers is the text of a runbook that finds its servers in SOURCE_URL and TARGET_URL.
const RunbookServers = `variable "source_url" {
  sensitive = true
  default   = env("SOURCE_URL")
}
variable "target_url" {
  sensitive = true
  default   = env("TARGET_URL")
}
source { url = var.source_url }
target { url = var.target_url }
`
