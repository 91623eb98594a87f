#!/bin/sh
# Makes the files that docker-compose.yml takes its secrets from, in docker/secrets; those that are there stay.
#     sh docker/secrets.sh                                      with the server's image, built if it has to be
#     SEQSERVE=.venv/bin/seqserve sh docker/secrets.sh          with an installed server
# Containers run as other users than yours and see these files alone: so they are for all to read, and their folder is
# for you alone to enter.
set -eu
cd "$(dirname "$0")/.."
SECRETS=${SECRETS:-docker/secrets}

# The arguments of `seqserve keys`, answered by a key.
keys() {
    if [ -n "${SEQSERVE:-}" ]; then
        $SEQSERVE keys "$@" --file "$SECRETS/api_keys"
    else
        docker run --rm --network none --read-only --cap-drop ALL --user "$(id -u):$(id -g)" \
            --volume "$(realpath "$SECRETS"):/secrets" "$IMAGE" keys "$@" --file /secrets/api_keys
    fi
}

# Standard input becomes the secret $1, whole or not at all.
keep() {
    cat > "$SECRETS/.new"
    [ -s "$SECRETS/.new" ] || { echo "$SECRETS/$1: expected a secret, found none" >&2; exit 1; }
    mv "$SECRETS/.new" "$SECRETS/$1"
    echo "$SECRETS/$1 made" >&2
}

mkdir -p "$SECRETS"
chmod 700 "$SECRETS"
IMAGE=$(sed -n 's/^ *image: \(seqserve:.*\)/\1/p' docker-compose.yml)
if [ -z "${SEQSERVE:-}" ] && ! docker image inspect "$IMAGE" > /dev/null 2>&1; then
    docker build --file docker/Dockerfile --tag "$IMAGE" .
fi
[ -e "$SECRETS/metrics_key" ] || keys new prometheus --scope admin | keep metrics_key
[ -e "$SECRETS/predict_key" ] || keys new first --scope predict | keep predict_key
[ -e "$SECRETS/grafana_admin_password" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' | keep grafana_admin_password
chmod 644 "$SECRETS/api_keys" "$SECRETS/metrics_key" "$SECRETS/grafana_admin_password"
chmod 600 "$SECRETS/predict_key"
