runbook "t" {}

source { service = "old" }
target { service = "new" }

cutover {
  closed_error   = "57P01"
  closed_message = ""
  large_objects  = "carry"
}
