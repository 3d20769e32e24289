#!/usr/bin/env bash
# End the throw-away Slurm that start.sh made in DIR, its jobs too, and remove DIR. Nothing else is touched.
#
#   slurm/cluster/stop.sh [--keep] DIR       --keep: leave DIR and its logs
#
# May be called again, and after a crash of any part. Exit: 0 nothing of it is left, 1 some process will not end,
# 2 usage.
set -euo pipefail

say() { echo "stop.sh: $*" >&2; }

KEEP=0
if [ "${1:-}" = --keep ]; then
  KEEP=1
  shift
fi
[ $# = 1 ] && [ -n "$1" ] || { say "usage: stop.sh [--keep] DIR" && exit 2; }
[ -d "$1" ] || exit 0
DIR=$(cd "$1" && pwd -P)
if [ ! -e "$DIR/.slurm-cluster" ]; then
  [ -z "$(ls -A "$DIR")" ] && exit 0
  say "$DIR holds no cluster made by start.sh"
  exit 2
fi

started_at() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # shellcheck disable=SC2086
  set -- ${stat##*) }
  echo "${20}"
}

recorded() { # pids that start.sh noted and that are still the same processes
  local name pid began
  [ -e "$DIR/run/pids" ] || return 0
  while read -r name pid began; do
    [ "$(started_at "$pid")" = "$began" ] && echo "$pid"
  done <"$DIR/run/pids"
  return 0
}

# What the recorded ones started and that outlived them. Daemons carry our mark in their environment; step managers
# write over theirs, but log into our folder; tasks of jobs have a job number beside our configuration, which a user's
# shell has not.
offspring() {
  local file
  {
    grep -lx slurmstepd /proc/[0-9]*/comm | while read -r file; do
      [ -z "$(find "${file%comm}fd" -lname "$DIR/log/*")" ] || echo "$file"
    done
    grep -lzxF "SLURM_CLUSTER_DIR=$DIR" /proc/[0-9]*/environ
    grep -lzxF "SLURM_CONF=$DIR/etc/slurm.conf" /proc/[0-9]*/environ | xargs -r grep -lz '^SLURM_JOB_ID='
  } 2>/dev/null | tr -dc '0-9\n' || true
}

running() { { recorded; offspring; } | sort -un | grep -vx -e $$ -e "$BASHPID" || true; }

signal_all() { # signal_all SIGNAL PID...
  local name=$1
  shift
  [ $# = 0 ] || kill "-$name" "$@" 2>/dev/null || true
}

wait_gone() { # wait_gone TENTHS: true when all have ended
  local i
  for ((i = 0; i < $1; i++)); do
    [ -n "$(running)" ] || return 0
    sleep 0.1
  done
  [ -z "$(running)" ]
}

# Thrown away, so not asked politely: nodes first (with namespaces, the end of a node's first process ends all in it).
mapfile -t pids < <(running)
signal_all KILL "${pids[@]}"
if ! wait_gone 50; then # what was started in between
  mapfile -t pids < <(running)
  signal_all KILL "${pids[@]}"
  wait_gone 50 || { say "will not end: $(running | paste -sd ' ')" && exit 1; }
fi
: >"$DIR/run/pids"
if [ $KEEP = 1 ]; then
  rm -rf "${DIR:?}"/{state,spool,tmp,dev,mysql,munge,env}
else
  rm -rf "$DIR"
fi
