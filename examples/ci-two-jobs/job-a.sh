#!/bin/sh
# The first job: plan, copy, compare. It ends well where a person has to say go.
set -u
runbook=ci-two-jobs.runbook.hcl

pgrunbook plan "$runbook" --out plan.json || exit
pgrunbook show plan.json --markdown > plan.md || exit # for the reviewer
pgrunbook apply plan.json
code=$?
if [ "$code" -ne 14 ]; then
  exit "$code" # 1 and 143 may be tried again; 0 cannot be, since nobody has said go
fi
pgrunbook status "$runbook"
