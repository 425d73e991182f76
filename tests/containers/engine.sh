#!/usr/bin/env bash
# Make sure that a container engine answers and that a base image is there; print its name.
# On a Debian machine with root both are made from Debian's packages, for machines that reach
# no image registry. Usage: engine.sh FOLDER (of the engine's data and log, if it is started).
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
base=hermesflow-test-base

say() { echo "engine: $*" >&2; }

if ! docker info >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || { say "no container engine answers, and only root can start one"; exit 3; }
    if ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || { say "no container engine, and no Debian to install one from"; exit 3; }
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io iptables >&2
    fi
    say "starting dockerd, log in $folder/dockerd.log"
    nohup dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/dockerd.pid" \
        >"$folder/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
    docker info >/dev/null 2>&1 || { say "dockerd does not start:"; tail -5 "$folder/dockerd.log" >&2; exit 3; }
fi

if ! docker image inspect "$base" >/dev/null 2>&1; then
    root="$folder/rootfs"
    if ! command -v debootstrap >/dev/null; then
        [ "$(id -u)" = 0 ] || { say "no image $base, and only root can make it"; exit 3; }
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >&2
    fi
    say "making the base image $base"
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" >"$folder/debootstrap.log" 2>&1 \
        || { say "debootstrap failed:"; tail -5 "$folder/debootstrap.log" >&2; exit 3; }
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
