#!/usr/bin/env bash
# Starts TorchServe in the container, and ends it without losing a request.
#
#   RSP_BIND          address to listen on (default 127.0.0.1; a pod behind a NetworkPolicy wants 0.0.0.0)
#   RSP_WORKERS       worker processes of each model (default 1; as many as the container has processors)
#   RSP_MODEL         an exported model to serve, of which the archive is made at the start
#   RSP_MODEL_NAME    its name (default rsp)
#   RSP_MODEL_STORE   folder of the archives (default /models); what `rsp deploy` left there is served again
#   RSP_MODEL_API     true (default): `rsp deploy` may register models; false: the model is fixed
#   RSP_DRAIN         seconds between SIGTERM and the end (default 10): time to be taken off the load balancer
#   TS_<KEY>          any key of config.properties
#
# TorchServe has no graceful stop: SIGTERM to Java cuts the requests under way, SIGTERM to the launcher leaves
# Java behind. So this script takes the signal, keeps serving while it is not ready any more, and then ends Java.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
store=${RSP_MODEL_STORE:-/models}
name=${RSP_MODEL_NAME:-rsp}
bind=${RSP_BIND:-127.0.0.1}
export TEMP=${TEMP:-/tmp}
export TMPDIR=$TEMP
export LOG_LOCATION=${LOG_LOCATION:-$TEMP/logs} METRICS_LOCATION=${METRICS_LOCATION:-$TEMP/logs}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TS_INFERENCE_ADDRESS=${TS_INFERENCE_ADDRESS:-http://$bind:8080}
export TS_MANAGEMENT_ADDRESS=${TS_MANAGEMENT_ADDRESS:-http://$bind:8081}
export TS_METRICS_ADDRESS=${TS_METRICS_ADDRESS:-http://$bind:8082}
export TS_DEFAULT_WORKERS_PER_MODEL=${RSP_WORKERS:-1}
export TS_ENABLE_MODEL_API=${RSP_MODEL_API:-true}
export TS_MODEL_STORE=$store
export TS_ALLOWED_URLS="file://$store/.*"

rm -f "$TEMP/draining" "$TEMP/.model_server.pid"

models=()
if [[ -n ${RSP_MODEL:-} ]]; then
  store=$TEMP/store
  export TS_MODEL_STORE=$store TS_ALLOWED_URLS="file://$store/.*"
  archive=$(python3 -m rsp.serving.archive "$RSP_MODEL" --out "$store" --name "$name")
  models+=("$name=$(basename "$archive")")
else
  # `rsp deploy` notes each model's default archive: what the management API was told, a restart would forget.
  for pointer in "$store"/*.current; do
    if [[ -e $pointer && -e $store/$(< "$pointer") ]]; then
      models+=("$(basename "$pointer" .current)=$(< "$pointer")")
    fi
  done
fi
echo "serving ${models[*]:-no model yet; deploy one with rsp deploy}"

# Java keeps files of its own where it starts.
cd "$TEMP"
torchserve --start --foreground --no-config-snapshots --ts-config "$here/config.properties" \
  --log-config "$here/log4j2.xml" --model-store "$store" ${models[@]+--models "${models[@]}"} &
launcher=$!

drain() {
  echo "draining for ${RSP_DRAIN:-10} s"
  touch "$TEMP/draining"
  sleep "${RSP_DRAIN:-10}" || true
  kill -TERM "$(< "$TEMP/.model_server.pid")" 2> /dev/null || true
}
# The first `wait` ends with the signal, the second with TorchServe.
trap drain TERM INT
code=0
wait "$launcher" || code=$?
wait "$launcher" 2> /dev/null || true
if [[ -e $TEMP/draining ]]; then code=0; fi
exit "$code"
