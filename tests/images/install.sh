#!/bin/sh
# Installs what `make test-images` needs and this machine lacks: a Docker engine, and what makes a base image where
# no registry is reached. Root on Debian or Ubuntu; elsewhere says what is missing, and fails.
set -eu

missing=""
docker info >/dev/null 2>&1 || command -v dockerd >/dev/null || missing="$missing docker.io"
command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
command -v setpriv >/dev/null || missing="$missing util-linux"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "the tests of the images need, and root on Debian or Ubuntu could install:$missing" >&2
    exit 1
fi
echo "installing for the tests of the images:$missing"
apt=$(dirname "$0")/../apt.sh
"$apt" update -qq
# shellcheck disable=SC2086 # a list of packages
DEBIAN_FRONTEND=noninteractive "$apt" install -y -qq --no-install-recommends $missing >/dev/null
