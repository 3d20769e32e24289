#!/usr/bin/env bash
# A throw-away Slurm on this machine: emulated nodes on loopback, accounting included, no systemd.
#
#   slurm/cluster/start.sh DIR        start it; all its state lies in DIR
#   eval "$(slurm/cluster/start.sh DIR)"   the same, and let this shell talk to it (also: . DIR/env)
#   slurm/cluster/stop.sh DIR         end it and remove DIR
#
# Settings, from the environment: NODES (4), CPUS and GPUS a node (4, 4; both made up), MEM a node (4000 MB),
# NS (1 as root where the kernel lets us: each node has its own host name, processes, mounts and /dev/shm, so that
# killing its slurmd is a node's crash; 0: all nodes share this machine's), DBD (1: with slurmdbd and MariaDB, for
# sacct), READY_S (60: longest wait for each part).
# Partitions: batch (default), booster, urgent (preempts the other two, whose jobs get 20 s and are requeued).
# Exit: 0 all nodes are idle, 1 it did not come up (its logs' ends are shown), 2 usage, 3 programs are missing.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NODES=${NODES:-4} CPUS=${CPUS:-4} GPUS=${GPUS:-4} MEM=${MEM:-4000} DBD=${DBD:-1} READY_S=${READY_S:-60}
PATH=$PATH:/usr/sbin:/sbin
ME=$(id -un)

say() { echo "start.sh: $*" >&2; }

usage() {
  say "$1"
  say "usage: start.sh DIR (a folder that is new, empty, or held a cluster before)"
  exit 2
}

claim_folder() {
  [ $# = 1 ] && [ -n "$1" ] || usage "one argument, the cluster's folder"
  mkdir -p "$1"
  DIR=$(cd "$1" && pwd -P)
  case $DIR in *[[:space:]%\"\'\\]*) usage "$DIR: Slurm takes no such character in a path" ;; esac
  # a unix socket's path has 107 characters at most
  [ ${#DIR} -le 80 ] || usage "$DIR: too long by $((${#DIR} - 80)) characters for the sockets in it"
  if [ -e "$DIR/.slurm-cluster" ]; then
    "$HERE/stop.sh" --keep "$DIR" # what a crash has left
  elif [ -n "$(ls -A "$DIR")" ]; then
    usage "$DIR: not empty, and not a cluster's"
  fi
  : >"$DIR/.slurm-cluster"
  mkdir -p "$DIR"/{etc,run,log,state,spool,tmp,dev,mysql,munge}
  chmod 755 "$DIR" "$DIR"/*
}

check_programs() {
  local missing=() pair programs="munged:munge slurmctld:slurmctld slurmd:slurmd srun:slurm-client
    sbatch:slurm-client setsid:util-linux"
  [ "$DBD" = 0 ] || programs+=" slurmdbd:slurmdbd mariadbd:mariadb-server-core"
  for pair in $programs; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} = 0 ] && return 0
  say "missing programs; on Debian or Ubuntu: apt-get install --no-install-recommends" \
    "$(printf '%s\n' "${missing[@]}" | sort -u | paste -sd ' ')"
  exit 3
}

# Own namespaces need root, and a kernel or container that allows them.
choose_namespaces() {
  local try=(unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc true)
  if [ "${NS:-1}" = 0 ]; then
    NS=0
  elif [ "$(id -u)" = 0 ] && "${try[@]}" 2>/dev/null; then
    NS=1
  else
    [ "${NS:-}" != 1 ] || say "no namespaces of their own for the nodes (not root, or not allowed here): NS=0"
    NS=0
  fi
}

# A run of ports that nobody listens on, below the kernel's own range for outgoing connections.
choose_ports() {
  local need=$((NODES + 2)) tries=0 port taken # a listening socket has state 0A, and its port in base 16
  taken=" $(cat /proc/net/tcp* | awk '$4 == "0A" { sub(/.*:/, "", $2); print $2 }' |
    while read -r hex; do echo $((16#$hex)); done | paste -sd ' ') "
  while [ $((tries += 1)) -le 100 ]; do
    BASE=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    for ((port = BASE; port < BASE + need; port++)); do
      [[ $taken == *" $port "* ]] && continue 2
    done
    return 0
  done
  say "no $need free ports in a row between 20000 and 32000"
  exit 1
}

started_at() { # when the process PID began, in clock ticks: tells it from a later one of the same number
  local stat
  stat=$(cat "/proc/$1/stat") || return
  # shellcheck disable=SC2086
  set -- ${stat##*) }
  echo "${20}"
}

launch() { # launch NAME COMMAND...: in the background, in its own session, noted for stop.sh
  local name=$1
  shift
  # The variable is how stop.sh knows what these processes start in turn.
  SLURM_CLUSTER_DIR=$DIR setsid "$@" >>"$DIR/log/$name.out" 2>&1 </dev/null &
  echo "$name $! $(started_at $!)" >>"$DIR/run/pids"
  PID=$!
}

ready() { # ready NAME PID TEST...: until TEST holds; PID 0 for what is no single process
  local name=$1 pid=$2 end=$((SECONDS + READY_S))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$pid" != 0 ] && ! kill -0 "$pid" 2>/dev/null; then
      say "$name ended at once"
      exit 1
    fi
    if [ $SECONDS -ge $end ]; then
      say "$name is not ready after $READY_S s"
      exit 1
    fi
    sleep 0.1
  done
}

give_up() { # on any exit but a good one: show why, leave nothing running
  local code=$? file
  [ $code = 0 ] && return 0
  for file in "$DIR"/log/*; do
    [ -s "$file" ] || continue
    echo "---- $file" >&2
    tail -n 8 "$file" >&2
  done
  "$HERE/stop.sh" --keep "$DIR"
  say "failed; the logs are in $DIR/log"
  exit $code
}

# ---- the parts

start_munge() {
  (umask 077 && head -c 128 /dev/urandom >"$DIR/etc/munge.key")
  launch munged munged --foreground --force --key-file="$DIR/etc/munge.key" --socket="$DIR/munge/socket" \
    --pid-file="$DIR/munge/pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"
  ready munged $PID test -S "$DIR/munge/socket"
}

MYSQL_SMALL=(--innodb-log-file-size=8M --innodb-data-file-path=ibdata1:8M:autoextend)

# mariadb-install-db wants programs of the client package; its work is a few SQL files and one bootstrap.
make_database() {
  {
    printf '%s\n' 'create database mysql;' 'use mysql;' 'set @auth_root_socket=null;' 'set @skip_auth_anonymous=1;'
    cat /usr/share/mysql/mysql_system_tables.sql /usr/share/mysql/mysql_performance_tables.sql \
      /usr/share/mysql/mysql_system_tables_data.sql
  } | mariadbd --no-defaults --bootstrap --user="$ME" --datadir="$DIR/mysql/data" "${MYSQL_SMALL[@]}" \
    >"$DIR/log/mysql-bootstrap.log" 2>&1
}

start_database() {
  mkdir -p "$DIR/mysql/data"
  make_database
  printf '%s\n' 'create database slurm;' "create user slurm@localhost identified by 'slurm';" \
    'grant all on slurm.* to slurm@localhost;' >"$DIR/mysql/init.sql"
  launch mariadbd mariadbd --no-defaults --init-file="$DIR/mysql/init.sql" --user="$ME" \
    --datadir="$DIR/mysql/data" --socket="$DIR/mysql/socket" --skip-networking --pid-file="$DIR/mysql/pid" \
    "${MYSQL_SMALL[@]}" --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    --innodb-flush-log-at-trx-commit=0
  ready mariadbd $PID test -S "$DIR/mysql/socket"
}

start_accounting() {
  (umask 077 && cat >"$DIR/etc/slurmdbd.conf") <<EOC
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((BASE + 1))
SlurmUser=$ME
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
EOC
  MYSQL_UNIX_PORT=$DIR/mysql/socket launch slurmdbd slurmdbd -D
  ready slurmdbd $PID sacctmgr --noheader show cluster
  {
    sacctmgr --immediate add cluster throwaway
    sacctmgr --immediate add account demo Description=demo Organization=demo
    sacctmgr --immediate add user "$ME" Account=demo
  } >>"$DIR/log/sacctmgr.log" 2>&1
}

accounting_lines() {
  if [ "$DBD" = 0 ]; then
    echo "AccountingStorageType=accounting_storage/none"
    return
  fi
  cat <<EOC
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$((BASE + 1))
AccountingStoragePass=$DIR/munge/socket
EOC
  [ "$GPUS" = 0 ] || echo "AccountingStorageTRES=gres/gpu"
}

# GPUs are character devices of our own, copies of /dev/null; without root, terminals stand in for them.
gpu_files() {
  local i
  for ((i = 0; i < GPUS; i++)); do
    if ! mknod "$DIR/dev/gpu$i" c 1 3 2>/dev/null; then
      echo "/dev/tty[0-$((GPUS - 1))]"
      return
    fi
  done
  echo "$DIR/dev/gpu[0-$((GPUS - 1))]"
}

node_lines() {
  local i host gres=""
  [ "$GPUS" = 0 ] || gres="Gres=gpu:v100:$GPUS"
  for ((i = 1; i <= NODES; i++)); do
    host=$(hostname -s)
    [ "$NS" = 0 ] || host=node$i
    echo "NodeName=node$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((BASE + 1 + i)) CPUs=$CPUS Boards=1" \
      "SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM $gres State=UNKNOWN"
  done
}

write_config() {
  printf '%s\n' CgroupPlugin=cgroup/v1 ConstrainCores=no ConstrainRAMSpace=no >"$DIR/etc/cgroup.conf"
  : >"$DIR/etc/gres.conf"
  [ "$GPUS" = 0 ] || echo "NodeName=node[1-$NODES] Name=gpu Type=v100 File=$(gpu_files)" >"$DIR/etc/gres.conf"
  cat >"$DIR/etc/slurm.conf" <<EOC
ClusterName=throwaway
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
# a requeued job may start again when its old credential has expired: soon
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$BASE
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmdSpoolDir=$DIR/spool/%n
StateSaveLocation=$DIR/state
TmpFS=$DIR/tmp/%n
# loopback only; emulated nodes may claim CPUs that the machine has not
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=3,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobAcctGatherType=jobacct_gather/linux
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=2
MinJobAge=300
UnkillableStepTimeout=30
$([ "$GPUS" = 0 ] || echo GresTypes=gpu)
$(accounting_lines)
$(node_lines)
PartitionName=batch Nodes=node[1-$NODES] Default=YES MaxTime=24:00:00 DefaultTime=10 PriorityTier=1 GraceTime=20
PartitionName=booster Nodes=node[1-$NODES] MaxTime=24:00:00 DefaultTime=10 PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=node[1-$NODES] MaxTime=24:00:00 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
EOC
}

write_env() {
  {
    echo "export SLURM_CONF=$DIR/etc/slurm.conf"
    # without namespaces Open MPI takes two nodes for one host, and their shared memory collides
    [ "$NS" = 1 ] || echo "export OMPI_MCA_pml=ob1 OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo"
  } >"$DIR/env"
}

start_nodes() {
  local i node
  cp /etc/hosts "$DIR/etc/hosts"
  for ((i = 1; i <= NODES; i++)); do echo "127.0.0.1 node$i" >>"$DIR/etc/hosts"; done
  cat >"$DIR/etc/node.sh" <<EOC
# the first process of a node: it stays, to reap what its jobs leave
hostname "\$1"
mount --bind "$DIR/etc/hosts" /etc/hosts
mount -t tmpfs -o size=512m tmpfs /dev/shm
slurmd -D -N "\$1" -f "$SLURM_CONF"
exit \$?
EOC
  for ((i = 1; i <= NODES; i++)); do
    node=node$i
    mkdir -p "$DIR/spool/$node" "$DIR/tmp/$node"
    chmod 1777 "$DIR/tmp/$node"
    if [ "$NS" = 1 ]; then
      launch "slurmd.$node" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
        sh "$DIR/etc/node.sh" "$node"
    else
      launch "slurmd.$node" slurmd -D -N "$node" -f "$SLURM_CONF"
    fi
  done
}

all_idle() { [ "$(sinfo --noheader -N --partition batch --states idle -o %N | sort -u | wc -l)" = "$NODES" ]; }
controller_up() { scontrol ping | grep -q UP; }

check_programs
claim_folder "$@"
trap give_up EXIT
trap 'exit 130' INT TERM
choose_namespaces
choose_ports
export SLURM_CONF=$DIR/etc/slurm.conf
unset SLURM_JOB_ID SLURM_JOBID # we may stand inside another cluster's job
write_config
start_munge
if [ "$DBD" != 0 ]; then
  start_database
  start_accounting
fi
launch slurmctld slurmctld -D -f "$SLURM_CONF"
ready slurmctld $PID controller_up
start_nodes
ready "$NODES nodes" 0 all_idle
write_env
trap - EXIT
say "$NODES nodes of $CPUS CPUs and $GPUS GPUs (made up), NS=$NS, in $DIR after $SECONDS s; end it with $HERE/stop.sh $DIR"
cat "$DIR/env"
