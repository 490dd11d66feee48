runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  after {
    step "http" "health" {
      url     = var.health_url
      retries = lenght("x")
    }
  }
}
