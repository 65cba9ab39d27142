#!/usr/bin/env bash
# Starts TorchServe in the container behind the proxy, and ends both without losing a request.
#
#   RSP_BIND          address to listen on (default 127.0.0.1; a pod behind a NetworkPolicy wants 0.0.0.0)
#   RSP_PORT          port for predictions (default 8080)
#   RSP_WORKERS       worker processes of each model (default 1; as many as the container has processors)
#   RSP_MODEL         an exported model to serve, of which the archive is made at the start
#   RSP_MODEL_NAME    its name (default rsp)
#   RSP_MODEL_STORE   folder of the archives (default /models); what `rsp deploy` left there is served again
#   RSP_MODEL_API     true (default): `rsp deploy` may register models; false: the model is fixed
#   RSP_DRAIN         seconds between SIGTERM and the end of accepting (default 10): time for load balancers to notice
#   RSP_ANSWER        seconds that requests under way may take after that (default 65)
#   RSP_BACKEND_PORT  port of the loopback between the proxy and TorchServe (default 18080)
#   TS_<KEY>          any other key of config.properties
#
# TorchServe has no graceful stop: SIGTERM to Java cuts off the requests under way, SIGTERM to the launcher leaves
# Java behind. So this script takes the signal, and serves on while it is not ready any more; then the proxy
# closes and answers what it has; then Java ends.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
store=${RSP_MODEL_STORE:-/models}
name=${RSP_MODEL_NAME:-rsp}
bind=${RSP_BIND:-127.0.0.1}
backend=${RSP_BACKEND_PORT:-18080}
export TEMP=${TEMP:-/tmp}
export TMPDIR=$TEMP
export LOG_LOCATION=${LOG_LOCATION:-$TEMP/logs} METRICS_LOCATION=${METRICS_LOCATION:-$TEMP/logs}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TS_INFERENCE_ADDRESS=http://127.0.0.1:$backend
export TS_MANAGEMENT_ADDRESS=${TS_MANAGEMENT_ADDRESS:-http://$bind:8081}
export TS_METRICS_ADDRESS=${TS_METRICS_ADDRESS:-http://$bind:8082}
export TS_DEFAULT_WORKERS_PER_MODEL=${RSP_WORKERS:-1}
export TS_ENABLE_MODEL_API=${RSP_MODEL_API:-true}

rm -f "$TEMP/draining" "$TEMP/.model_server.pid"

models=()
if [[ -n ${RSP_MODEL:-} ]]; then
  store=$TEMP/store
  archive=$(python3 -m rsp.serving.archive "$RSP_MODEL" --out "$store" --name "$name")
  models+=("$name=$(basename "$archive")")
else
  # `rsp deploy` notes each model's current archive: what the management API was told, a restart would forget.
  for pointer in "$store"/*.current; do
    if [[ -e $pointer && -e $store/$(< "$pointer") ]]; then
      models+=("$(basename "$pointer" .current)=$(< "$pointer")")
    fi
  done
fi
# The workers note in the store why they could not load a model.
export RSP_MODEL_STORE=$store TS_MODEL_STORE=$store TS_ALLOWED_URLS="file://$store/.*"
echo "serving ${models[*]:-no model yet; deploy one with rsp deploy}"

# Java keeps files of its own where it starts.
cd "$TEMP"
torchserve --start --foreground --no-config-snapshots --ts-config "$here/config.properties" \
  --log-config "$here/log4j2.xml" --model-store "$store" ${models[@]+--models "${models[@]}"} &
launcher=$!
python3 -m rsp.serving.proxy --listen "$bind:${RSP_PORT:-8080}" --backend "$backend" --drain "${RSP_ANSWER:-65}" &
proxy=$!

asked=false
trap 'asked=true' TERM INT
code=0
# Ends with the signal, or with whichever of the two ends by itself.
wait -n "$launcher" "$proxy" || code=$?
if $asked; then
  echo "shutting down: no longer ready, and serving for ${RSP_DRAIN:-10} s more"
  touch "$TEMP/draining"
  sleep "${RSP_DRAIN:-10}" || true
fi
kill -TERM "$proxy" 2> /dev/null || true
ended=0
wait "$proxy" 2> /dev/null || ended=$?
if $asked; then code=$ended; fi
kill -TERM "$(< "$TEMP/.model_server.pid")" 2> /dev/null || true
wait "$launcher" 2> /dev/null || true
exit "$code"
