#!/usr/bin/env bash
# Hosts with addresses of their own on this machine, for `make test-hosts`: setup.sh install | start | stop, and
# cut HOST, which takes a host's link down. Each host is a network namespace, joined by a bridge:
# 10.77.0.1 this machine, 10.77.0.2 dc-s (scheduler), 10.77.0.3 dc-a and 10.77.0.4 dc-b (workers).
# They share files and processes with this machine, and nothing of the network.
set -euo pipefail

HOSTS=(dc-s dc-a dc-b)
BRIDGE=dc-bridge

install() {
    local missing=()
    command -v ip > /dev/null || missing+=(iproute2)
    command -v sshd > /dev/null || missing+=(openssh-server)
    if [ ${#missing[@]} != 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    fi
}

start() {
    local number=2 host
    ip link add "$BRIDGE" type bridge
    ip address add 10.77.0.1/24 dev "$BRIDGE"
    ip link set "$BRIDGE" up
    for host in "${HOSTS[@]}"; do
        ip netns add "$host"
        ip link add "v-$host" type veth peer name eth0 netns "$host"
        ip link set "v-$host" master "$BRIDGE" up
        ip -n "$host" link set lo up
        ip -n "$host" address add "10.77.0.$number/24" dev eth0
        ip -n "$host" link set eth0 up
        number=$((number + 1))
    done
}

cut() {
    ip link set "v-$1" down
}

mend() {
    ip link set "v-$1" up
}

stop() {
    local host
    for host in "${HOSTS[@]}"; do
        # what a killed session left running would keep the host, without a link, for ever
        ip netns pids "$host" 2> /dev/null | xargs --no-run-if-empty kill -KILL 2> /dev/null || true
        ip netns delete "$host" 2> /dev/null || true
        ip link delete "v-$host" 2> /dev/null || true
    done
    ip link delete "$BRIDGE" 2> /dev/null || true
}

"$@"
