#!/usr/bin/env bash
# Make sure that a container engine with Compose answers and that a base image is there; print its
# name. On a Debian machine with root all of it is made from Debian's packages, for machines that
# reach no image registry. Usage: engine.sh FOLDER (of the engine's data and log, if it is started).
# Exit code 3: it cannot be had here.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
base=hermesflow-test-base

say() { echo "engine: $*" >&2; }

give_up() { say "$*"; exit 3; }

install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || give_up "$* is missing, and only root on Debian can install it here"
    say "installing $*"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
        >"$folder/apt.log" 2>&1 || give_up "$* cannot be installed: $(tail -1 "$folder/apt.log")"
}

if ! docker info >/dev/null 2>&1; then
    command -v dockerd >/dev/null || install docker.io iptables
    [ "$(id -u)" = 0 ] || give_up "no container engine answers, and only root can start one"
    say "starting dockerd, log in $folder/dockerd.log"
    nohup dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/dockerd.pid" \
        >"$folder/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
    docker info >/dev/null 2>&1 || give_up "dockerd does not start: $(tail -1 "$folder/dockerd.log")"
fi
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || install docker-compose

if ! docker image inspect "$base" >/dev/null 2>&1; then
    command -v debootstrap >/dev/null || install debootstrap
    say "making the base image $base"
    root="$folder/rootfs"
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" \
        >"$folder/debootstrap.log" 2>&1 || give_up "debootstrap failed: $(tail -1 "$folder/debootstrap.log")"
    tar -C "$root" -c . | docker import - "$base-plain" >/dev/null
    rm -rf "$root"
    # What this machine's pip trusts and where it looks, so that a build finds the same packages.
    context="$folder/context"
    rm -rf "$context"
    mkdir -p "$context/certificates" "$context/wheels"
    cp /usr/local/share/ca-certificates/*.crt "$context/certificates/" 2>/dev/null || true
    for place in $(python3 -m pip config get global.find-links 2>/dev/null || true); do
        if [ -d "$place" ]; then cp "$place"/*.whl "$context/wheels/" 2>/dev/null || true; fi
    done
    cat >"$context/Dockerfile" <<DOCKERFILE
FROM $base-plain
COPY certificates/ /usr/local/share/ca-certificates/
COPY wheels/ /opt/wheels/
RUN update-ca-certificates
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_FIND_LINKS=/opt/wheels PIP_DEFAULT_TIMEOUT=180
DOCKERFILE
    docker build -q -t "$base" "$context" >/dev/null
    rm -rf "$context"
fi
echo "$base"
