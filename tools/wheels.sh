# Functions for a wheel that takes minutes to build: a line that lives meanwhile, and a place where
# the next checkout finds it. Sourced by environment.sh; runs nothing by itself.

# live TITLE LOG COMMAND...: run COMMAND with its output in LOG and say how long it has taken and
# what it does. On a terminal the line changes every second, else one comes every 30 seconds.
live() {
    local title=$1 log=$2 start=$SECONDS job status=0 every=30 next=0 spent step
    shift 2
    [ -t 1 ] && every=1
    "$@" >"$log" 2>&1 &
    job=$!
    # A background job of a script ignores the interrupt key, so end it by another signal.
    trap 'kill -TERM '"$job"' 2>/dev/null; echo >&2; exit 130' INT TERM
    while kill -0 "$job" 2>/dev/null; do
        spent=$((SECONDS - start))
        if [ "$spent" -ge "$next" ]; then
            next=$((spent + every))
            step=$(last_step "$log")
            [ -t 1 ] && printf '\r\033[K'
            printf '%s: %d:%02d %s' "$title" $((spent / 60)) $((spent % 60)) "${step:0:60}"
            [ -t 1 ] || echo
        fi
        sleep "${LIVE_SLEEP:-1}"
    done
    wait "$job" || status=$?
    trap - INT TERM
    spent=$((SECONDS - start))
    [ -t 1 ] && printf '\r\033[K'
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" >&2
        printf '%s: failed after %d:%02d; %s has all of it\n' "$title" $((spent / 60)) \
            $((spent % 60)) "$log" >&2
        return "$status"
    fi
    printf '%s: done in %d:%02d\n' "$title" $((spent / 60)) $((spent % 60))
}

# last_step LOG: how far ninja is, such as `12 of 95 files`, or the last line.
last_step() {
    local found
    found=$(grep -oE '\[[0-9]+/[0-9]+\]' "$1" | tail -n 1 | tr -d '[]' || true)
    if [ -n "$found" ]; then
        echo "${found%/*} of ${found#*/} files"
    else
        tail -n 1 "$1" | tr -d '\r' | sed 's/^ *//'
    fi
}

# jobs_for_memory: how many compilers run at once: one for each core and 2 GiB of free memory.
jobs_for_memory() {
    local cores free
    cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1) # nproc heeds that variable
    free=$(awk '/^MemAvailable/ { print int($2 / 2097152) }' /proc/meminfo 2>/dev/null || true)
    [ -n "$free" ] && [ "$free" -lt "$cores" ] && cores=$free
    [ "$cores" -ge 1 ] && echo "$cores" || echo 1
}

# wheel_folder PYTHON REQUIREMENT: where a wheel of `NAME==VERSION` is kept. Its name has what
# it was compiled for: versions of package, torch and Python, the platform, and whether with CUDA.
wheel_folder() {
    "$1" - "$2" "${XDG_CACHE_HOME:-$HOME/.cache}" <<'PYTHON'
import os
import sys
import sysconfig
import torch

name, version = sys.argv[1].split('==')
cuda = os.environ.get('FORCE_CUDA') == '1' or torch.cuda.is_available()
python = f'py{sys.version_info.major}.{sys.version_info.minor}'
parts = [name, version, f'torch{torch.__version__}', python, sysconfig.get_platform()]
parts.append('cuda' if cuda else 'cpu')
print(os.path.join(sys.argv[2], 'mmclipq', 'wheels', '-'.join(parts)))
PYTHON
}

# kept_wheel FOLDER: path of the wheel that is kept there if its checksum holds; else nothing.
kept_wheel() {
    local wheel
    wheel=$(find "$1" -maxdepth 1 -name '*.whl' 2>/dev/null | head -n 1)
    if [ -n "$wheel" ] && (cd "$1" && sha256sum --status --strict -c SHA256SUMS) 2>/dev/null &&
        grep -qF "  $(basename "$wheel")" "$1/SHA256SUMS"; then
        echo "$wheel"
    fi
}

# keep_wheel FOLDER BUILT: move the only wheel of the folder BUILT to FOLDER, with its checksum, at
# once or not at all.
keep_wheel() {
    local part
    mkdir -p "$(dirname "$1")"
    part=$(mktemp -d "$1.XXXXXX")
    mv "$2"/*.whl "$part"
    (cd "$part" && sha256sum -- *.whl >SHA256SUMS)
    rm -rf "$1"
    mv "$part" "$1"
}

# loads_wheel PYTHON WHEEL: whether the compiled modules in WHEEL find all that they call in torch.
loads_wheel() {
    "$1" - "$2" <<'PYTHON'
import ctypes
import sys
import tempfile
import zipfile

import torch

with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if name.endswith('.so'):
            try:
                ctypes.CDLL(wheel.extract(name, folder))
            except OSError:
                sys.exit(1)
PYTHON
}

# built_wheel PYTHON REQUIREMENT LOG: path of a wheel in the variable `wheel`, kept or built.
# PYTHON has torch and what the package is built with. pip's own cache does not know for which torch
# a wheel was compiled, so what comes from there must load.
built_wheel() {
    local folder built jobs cache
    folder=$(wheel_folder "$1" "$2")
    wheel=$(kept_wheel "$folder")
    if [ -n "$wheel" ]; then
        echo "found $wheel"
        return
    fi
    built=$(mktemp -d)
    jobs=${MAX_JOBS:-$(jobs_for_memory)}
    for cache in '' --no-cache-dir; do
        rm -f "$built"/*.whl
        # shellcheck disable=SC2086 # no word where the cache may be used
        MMCV_WITH_OPS=1 MAX_JOBS=$jobs live "building ${2%%==*}'s operators" "$3" "$1" -m pip wheel \
            -v $cache --no-deps --no-build-isolation --wheel-dir "$built" "$2" || {
            rm -rf "$built"
            return 1
        }
        loads_wheel "$1" "$built"/*.whl && break
        echo "the wheel in pip's cache was built for another torch"
    done
    keep_wheel "$folder" "$built"
    rm -rf "$built"
    wheel=$(kept_wheel "$folder")
}
