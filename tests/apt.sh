#!/bin/sh
# apt-get that waits while another process holds one of apt's locks, for RSP_APT_WAIT seconds at most (600).
# apt's own DPkg::Lock::Timeout covers the locks of dpkg and not that of the package lists.
set -eu

wait=${RSP_APT_WAIT:-600}
deadline=$(($(date +%s) + wait))
told=""
until output=$(LC_ALL=C apt-get -o DPkg::Lock::Timeout="$wait" "$@" 2>&1); do
    case $output in
        *"Could not get lock"* | *"Unable to lock"* | *"Unable to acquire"*) ;;
        *)
            echo "$output" >&2
            exit 1
            ;;
    esac
    if [ "$(date +%s)" -ge "$deadline" ]; then
        echo "$output" >&2
        echo "apt is still locked after $wait s: run this again when the process that holds it has ended" >&2
        exit 1
    fi
    [ -n "$told" ] || echo "waiting for the process that holds the lock of apt, $wait s at most" >&2
    told=yes
    sleep 1
done
[ -z "$output" ] || echo "$output"
