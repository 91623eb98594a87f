#!/bin/sh
# Create the secrets of docker-compose.yml in docker/secrets; existing ones are kept.
#     sh docker/secrets.sh                                      with the server image, built if missing
#     SEQSERVE=.venv/bin/seqserve sh docker/secrets.sh          with an installed server
# Containers run as other users and mount only these files, so the files are world-readable and the folder is private.
set -eu
cd "$(dirname "$0")/.."
SECRETS=${SECRETS:-docker/secrets}

# Run `seqserve keys` with these arguments; print the key.
keys() {
    if [ -n "${SEQSERVE:-}" ]; then
        $SEQSERVE keys "$@" --file "$SECRETS/api_keys"
    else
        docker run --rm --network none --read-only --cap-drop ALL --user "$(id -u):$(id -g)" \
            --volume "$(realpath "$SECRETS"):/secrets" "$IMAGE" keys "$@" --file /secrets/api_keys
    fi
}

# Write standard input to the secret $1 atomically.
store() {
    cat > "$SECRETS/.new"
    [ -s "$SECRETS/.new" ] || { echo "$SECRETS/$1: expected a secret, found none" >&2; exit 1; }
    mv "$SECRETS/.new" "$SECRETS/$1"
    echo "$SECRETS/$1 created" >&2
}

mkdir -p "$SECRETS"
chmod 700 "$SECRETS"
IMAGE=$(sed -n 's/^ *image: \(seqserve:.*\)/\1/p' docker-compose.yml)
if [ -z "${SEQSERVE:-}" ] && ! docker image inspect "$IMAGE" > /dev/null 2>&1; then
    docker build --file docker/Dockerfile --tag "$IMAGE" .
fi
[ -e "$SECRETS/metrics_key" ] || keys new prometheus --scope admin | store metrics_key
[ -e "$SECRETS/predict_key" ] || keys new first --scope predict | store predict_key
[ -e "$SECRETS/grafana_admin_password" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' | store grafana_admin_password
chmod 644 "$SECRETS/api_keys" "$SECRETS/metrics_key" "$SECRETS/grafana_admin_password"
chmod 600 "$SECRETS/predict_key"
