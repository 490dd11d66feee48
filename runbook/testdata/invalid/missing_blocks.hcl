tables {}
