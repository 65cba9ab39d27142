#!/bin/sh
# Installs what `make test-images` needs and this machine lacks: a Docker engine, and what makes a base image where
# no registry is reached. Root on Debian or Ubuntu; elsewhere says what is missing, and fails.
# `tests/images/install.sh check` installs nothing: it fails where no engine runs and none could be started.
set -eu

if ! docker info >/dev/null 2>&1; then
    if [ "$(id -u)" != 0 ] || ! unshare --mount --net true 2>/dev/null; then
        echo "no Docker engine runs here, and to start one takes root with the right to mount" >&2
        exit 1
    fi
    if ! command -v dockerd >/dev/null && ! command -v apt-get >/dev/null; then
        echo "no Docker engine is installed, and there is no apt to install one" >&2
        exit 1
    fi
fi
[ "${1:-}" != check ] || exit 0

missing=""
if ! docker info >/dev/null 2>&1; then
    command -v dockerd >/dev/null || missing="$missing docker.io"
fi
# An engine of somebody who is not root reaches a registry.
[ "$(id -u)" != 0 ] || command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
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
