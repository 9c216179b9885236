#!/bin/sh
# Inside a Nitro enclave: vsock is the only way in, so port 8443 of vsock leads to confide's port. Not run on hardware yet.
set -eu
ip link set lo up 2>/dev/null || ifconfig lo up 2>/dev/null || true
socat VSOCK-LISTEN:8443,fork,reuseaddr TCP:127.0.0.1:8080 &
exec confide serve /srv/model.confide --backend tee --attester nitro --host 127.0.0.1 --port 8080
