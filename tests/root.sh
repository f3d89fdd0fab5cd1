#!/usr/bin/env bash
# Runs a program as root, for loop devices and mounts; it is also cargo's runner of test binaries.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
if [ "$(id -u)" = 0 ]; then exec "$@"; fi
command -v sudo >/dev/null || {
    echo "root is needed for loop devices and mounts; there is no sudo, so run it as root" >&2
    exit 1
}
# sudo hands on Ctrl-C and SIGTERM; cargo's variables and the library path of the tests come along.
exec sudo --preserve-env env "PATH=$PATH" "$@"
