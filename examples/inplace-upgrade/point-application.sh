#!/bin/sh
# Points the application to the old or the new server, in one step: the file is there in its old
# form or in its new one.
set -eu
case "$1" in
old) port=5555 ;;
new) port=5566 ;;
*) echo "usage: $0 old|new" >&2 && exit 1 ;;
esac
printf 'server=%s\nport=%s\n' "$1" "$port" > application.conf.new
mv application.conf.new application.conf
