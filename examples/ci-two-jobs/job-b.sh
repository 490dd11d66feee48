#!/bin/sh
# The second job, behind the pipeline's own approval: the word, and the cutover.
set -u
runbook=ci-two-jobs.runbook.hcl
who=${APPROVED_BY:?who pressed the button}

pgrunbook approve go "$runbook" --by "$who" || exit
for try in 1 2 3; do
  pgrunbook apply "$runbook"
  code=$?
  case $code in
    0) break ;;
    1 | 16 | 143) echo "try $try ended with $code: the application writes on" >&2 ;;
    *) exit "$code" ;;
  esac
done
[ "$code" -eq 0 ] || exit "$code"
pgrunbook status "$runbook" --certificate
