#!/bin/sh
# Installs what some tests need beside Python packages, where that is possible (root on Debian or Ubuntu);
# elsewhere says what is missing. The tests that need it are skipped then, and say so.
set -eu

# The messages of the oldest Kubeflow Pipelines that runs our pipelines, beside the environment and not within it:
# tests/pipelines/test_protos.py parses every compiled pipeline with them.
venv=$(dirname "$0")/../.venv
if [ -x "$venv/bin/pip" ] && [ ! -d "$venv/kfp-2.15" ]; then
    if "$venv/bin/pip" install -qq --no-deps --target "$venv/kfp-2.15.part" \
        kfp-pipeline-spec==2.15.0 kfp-kubernetes==2.15.0; then
        mv "$venv/kfp-2.15.part" "$venv/kfp-2.15"
    else
        rm -rf "$venv/kfp-2.15.part"
        echo "not installed, so some tests are skipped: the messages of KFP 2.15"
    fi
fi

missing=""
command -v java >/dev/null || missing="$missing openjdk-17-jre-headless"
command -v chromium >/dev/null || missing="$missing chromium"
command -v wget >/dev/null || missing="$missing wget"
command -v ogr2ogr >/dev/null || missing="$missing gdal-bin"
command -v osmium >/dev/null || missing="$missing osmium-tool"
command -v zsh >/dev/null || missing="$missing zsh"
command -v fish >/dev/null || missing="$missing fish"
ls /usr/share/postgresql/*/extension/postgis.control >/dev/null 2>&1 || missing="$missing postgresql postgresql-postgis"
[ -d /usr/lib/python3/dist-packages/swift/proxy ] ||
    missing="$missing swift-proxy swift-account swift-container swift-object"
apt=$(dirname "$0")/apt.sh
# promtool reads the alerts and the queries of the dashboard. Alone: the package would start a server, too.
if ! command -v promtool >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing for the tests: promtool"
        folder=$(mktemp -d)
        "$apt" update -qq
        (cd "$folder" && apt-get -o APT::Sandbox::User=root download -qq prometheus >/dev/null && dpkg-deb -x prometheus_*.deb .)
        install -m 755 "$folder/usr/bin/promtool" /usr/local/bin/promtool
        rm -r "$folder"
    else
        echo "not installed, so some tests are skipped: promtool"
    fi
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing for the tests:$missing"
    "$apt" update -qq
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive "$apt" install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "not installed, so some tests are skipped:$missing"
fi
