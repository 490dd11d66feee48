#!/bin/sh
# Prints the password of the moment. Yours asks the cloud, for example:
#   aws rds generate-db-auth-token --hostname ... --port 5432 --username migrator
exec cat "$TOKEN_FILE"
