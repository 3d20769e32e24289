#!/usr/bin/env bash
# Print the path of a Horovod wheel for the given Python, building it if it is not in $CACHE yet (4 to 9 minutes).
#   build.sh PYTHON      (env: CACHE, a folder; HOROVOD_GPU_OPERATIONS=NCCL etc. pass through to the build)
set -euo pipefail
python=$1 here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's/^# horovod==//p' "$here/../../constraints.txt")
mpi=none
if command -v mpicc >/dev/null && command -v mpirun >/dev/null; then mpi=$(mpirun --version | head -1 | tr -cs 'A-Za-z0-9.\n' -); fi
key=$("$python" -c 'import sys, platform, torch; print(f"torch{torch.__version__}-py{sys.version_info[0]}.{sys.version_info[1]}-{platform.machine()}")')
folder=$CACHE/wheels/horovod-$version-$key-$mpi${HOROVOD_GPU_OPERATIONS:+-$HOROVOD_GPU_OPERATIONS}
if compgen -G "$folder/*.whl" >/dev/null; then ls "$folder"/*.whl; exit; fi

mkdir -p "$CACHE/wheels"
work=$(mktemp -d "$CACHE/wheels/.building.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "setup: building Horovod $version with $([ $mpi = none ] && echo Gloo only || echo "MPI ($mpi) and Gloo"), once; some minutes" >&2
export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1
if [ $mpi = none ]; then export HOROVOD_WITHOUT_MPI=1; else export HOROVOD_WITH_MPI=1; fi
export CMAKE_TOOLCHAIN_FILE=$here/cxx17.cmake CMAKE_POLICY_VERSION_MINIMUM=3.5 LDFLAGS=-Wl,--strip-debug
# no cache: pip's does not know the HOROVOD_* variables
if ! "$python" -m pip wheel --quiet --no-cache-dir --no-binary horovod --no-build-isolation --no-deps \
  -w "$work/out" "horovod==$version" >"$work/log" 2>&1; then
  mv "$work/log" "$CACHE/horovod-build.log"
  grep -iE -A4 'cmake error|fatal error|[a-z0-9]: error:' "$CACHE/horovod-build.log" | head -20 >&2 || true
  echo "setup: Horovod's build failed; all it said: $CACHE/horovod-build.log" >&2
  exit 1
fi
mkdir -p "$(dirname "$folder")"
mv -T "$work/out" "$folder" 2>/dev/null || true   # another set-up may have been faster: its wheel is as good
ls "$folder"/*.whl
