#!/usr/bin/env bash
# A SLURM of this machine alone, for `make test-slurm`: setup.sh install | start FOLDER | stop FOLDER.
# `start` writes slurm.conf and the munge key into FOLDER, and starts munged, slurmctld and two slurmd (two
# nodes of this machine, n1 and n2, on ports of their own). Nothing in /etc is read or written.
set -euo pipefail

install() {
    if ! { command -v slurmctld && command -v slurmd && command -v munged; } > /dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
    fi
}

start() {
    local folder=$1 host
    host=$(hostname -s)
    mkdir -p "$folder"/{munge,state,log,spool-n1,spool-n2}
    chmod 755 "$folder"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge/key"
    chmod 711 "$folder/munge"
    cat > "$folder/slurm.conf" <<CONF
ClusterName=daskcurate
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
MpiDefault=none
# No control groups, as within a container: processes are followed by their parents.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=100000
ReturnToService=2
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdLogFile=$folder/log/slurmd-%n.log
SlurmdSpoolDir=$folder/spool-%n
# Cores and memory are what the file says, not what the machine has: the tests are small.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=4 RealMemory=4096
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=4 RealMemory=4096
PartitionName=batch Nodes=n1,n2 Default=YES MaxTime=01:00:00 State=UP
CONF
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munge/pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 100); do
        if [ "$(sinfo --noheader --Node --format=%t 2> /dev/null | grep -c idle)" = 2 ]; then return; fi
        sleep 0.2
    done
    echo 'the nodes did not become idle:' >&2
    sinfo >&2 || true
    tail -n 20 "$folder"/log/* >&2
    return 1
}

stop() {
    local folder=$1 file
    if [ -S "$folder/munge/socket" ]; then
        SLURM_CONF=$folder/slurm.conf scancel --user=root 2> /dev/null || true
    fi
    # By the ids that the daemons wrote, the one that the others need last.
    for file in "$folder"/slurmd-n1.pid "$folder"/slurmd-n2.pid "$folder"/slurmctld.pid "$folder"/munge/pid; do
        if [ -f "$file" ]; then kill "$(cat "$file")" 2> /dev/null || true; fi
        for _ in $(seq 50); do [ -f "$file" ] || break; sleep 0.1; done
    done
}

"$@"
