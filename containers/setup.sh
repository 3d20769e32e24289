#!/usr/bin/env bash
# Make .venv with jeoparda and all it needs. Called by `make`; run again with nothing changed, it ends at once.
#   PYTHON      the interpreter to build on (python3)
#   VENV        where the environment goes (.venv)
#   JEOPARDA_CACHE   where built wheels are kept (~/.cache/jeoparda)
#   TORCH_INDEX      an index to take torch from, and torch alone (without a GPU: pip's own configuration if that has a
#                    CPU build, else PyTorch's CPU index; with one: pip's own configuration)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv}
CACHE=${JEOPARDA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/jeoparda}
say() { echo "setup: $*"; }

# ---- what this machine has, in one line: if it changes, the environment is looked at again
version_of() { command -v "$1" >/dev/null 2>&1 && "$1" --version 2>&1 | head -1 || echo none; }
machine() {
  "$PYTHON" --version
  for tool in mpirun gcc g++ cmake slurmctld; do printf '%s ' "$(command -v $tool || echo none)"; done
  version_of mpirun
  "$PYTHON" -c 'import os, sysconfig; print(os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
  pwd
}
key() { { machine; cat constraints.txt setup.cfg setup.py pyproject.toml jeoparda/feed/_native.c containers/setup.sh containers/horovod/*; } | sha256sum | cut -d' ' -f1; }
stamp=$VENV/.jeoparda-setup
[ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(PATH=$PATH:/usr/sbin:/sbin key)" ] && exit 0
export PATH=$PATH:/usr/sbin:/sbin

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  say "$PYTHON is missing or older than 3.10; install a newer one and give it as make PYTHON=python3.x"; exit 1; }

# ---- system packages: program that shows it is there : package : what is left out without it
needs=(
  "gcc:gcc:the feed's part in C; batches are read from Python, more slowly"
  "g++:g++:Horovod (training on more than one rank)"
  "cmake:cmake:Horovod (training on more than one rank)"
  "mpicc:libopenmpi-dev:MPI in Horovod, and mpi4py"
  "mpirun:openmpi-bin:the tests under mpirun"
  "slurmctld:slurmctld:the tests on a real Slurm"
  "slurmd:slurmd:the tests on a real Slurm"
  "srun:slurm-client:the tests on a real Slurm"
  "slurmdbd:slurmdbd:the tests on a real Slurm"
  "munged:munge:the tests on a real Slurm"
  "mariadbd:mariadb-server-core:the tests on a real Slurm"
  "h5ls:hdf5-tools:the tests of shards with HDF5's own tools"
)
missing=()
for need in "${needs[@]}"; do
  IFS=: read -r program package _ <<<"$need"
  command -v "$program" >/dev/null || missing+=("$package")
done
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
"$PYTHON" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || missing+=(python3-dev)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing system packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
      say "apt-get failed; going on with what is there"
  fi
  left=()
  for need in "${needs[@]}"; do
    IFS=: read -r program package without <<<"$need"
    command -v "$program" >/dev/null || { say "missing: $package; left out: $without"; left+=("$package"); }
  done
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || {
    say "missing: python3-venv, without which there is no environment. Install: apt-get install python3-venv"; exit 1; }
  [ ${#left[@]} = 0 ] || say "to enable: apt-get install --no-install-recommends ${left[*]}   (then make again)"
fi

# ---- Python packages
rm -f "$stamp"
"$VENV/bin/python" -m pip --version >/dev/null 2>&1 || { rm -rf "$VENV"; "$PYTHON" -m venv "$VENV"; }
python=$PWD/$VENV/bin/python
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@" 2> >(grep -v '^WARNING: Location' >&2); }
say "Python packages into $VENV"
pip install -c constraints.txt pip setuptools wheel
torch=$(grep '^torch==' constraints.txt)
cpu_index=https://download.pytorch.org/whl/cpu
if "$python" -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '${torch#torch==}')" 2>/dev/null; then :
elif [ -n "${TORCH_INDEX:-}" ]; then pip install --index-url "$TORCH_INDEX" "$torch"
elif compgen -G '/dev/nvidia[0-9]*' >/dev/null; then pip install -c constraints.txt "$torch"
elif pip install "$torch+cpu" 2>/dev/null; then :
elif pip install --retries 0 --timeout 15 --index-url $cpu_index "$torch" 2>/dev/null; then :
else
  say "no CPU build of $torch can be had here; the one with CUDA comes instead: gigabytes (TORCH_INDEX=... names another index)"
  pip install -c constraints.txt "$torch"
fi
extras=report,test,gpu
command -v mpicc >/dev/null && mpi=mpi || mpi=
PYTHONWARNINGS=ignore pip install -c constraints.txt --no-build-isolation -e ".[$extras${mpi:+,$mpi},slurm]"
"$python" -c 'import jeoparda.feed._native' 2>/dev/null ||
  say "the feed's part in C did not build (it wants gcc and python3-dev); left out: its speed, batches are read from Python"
if [ "$(uname -sm)" = "Linux x86_64" ]; then
  pip install -c constraints.txt nvidia-dali-cuda130 || say "NVIDIA DALI cannot be had here; training takes the plain feed"
fi

# ---- Horovod, built once for each torch, Python and MPI
if command -v g++ >/dev/null && command -v cmake >/dev/null; then
  wheel=$(CACHE="$CACHE" containers/horovod/build.sh "$python") && pip install --no-deps --force-reinstall "$wheel" ||
    say "Horovod did not build; left out: training on more than one rank"
fi
PATH=${PATH%:/usr/sbin:/sbin}
PATH=$PATH:/usr/sbin:/sbin key > "$stamp"
say "done"
