# Makes the environment .venv and activates it; sourced by the scripts beside it.
# Starts within a second when the requirement files have not changed. LINE=onedl takes MMDetection and
# what it needs from the packages in requirements/lines/onedl.txt, in an environment .venv-onedl.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# shellcheck source=tools/wheels.sh
. "$root/tools/wheels.sh"

line=${LINE:-openmmlab}
venv=.venv
[ "$line" = openmmlab ] || venv=.venv-$line

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.10 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
                2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

check_tools() {
    python=$(find_python) ||
        fail "found no Python 3.10 to 3.12, wanted one; install python3.11 (Debian: apt install" \
            "python3 python3-venv python3-dev) or set PYTHON to its path"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "found $python without venv, wanted it to make .venv; install python3-venv"
    command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 ||
        fail "found no C++ compiler, wanted one to build mmcv's ops; install g++ (Debian: apt" \
            "install build-essential)"
    local header
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -f "$header" ] ||
        fail "found no Python.h, wanted it to build mmcv's ops; install python3-dev"
}

install() {
    say "Making $venv with $("$python" --version) (once; the first on a machine builds mmcv's ops," \
        '6 to 15 minutes)'
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    "$venv/bin/python" -m pip install --quiet -r requirements/build.txt
    say 'Installing PyTorch'
    "$venv/bin/python" -m pip install --quiet "$(grep '^torch==' requirements/runtime.txt)"
    say 'Building mmcv with its ops, or taking the wheel that another checkout built'
    # mmcv compiles against the torch installed above, so not in an isolated environment. All of its
    # ops: mmcv.ops looks for every one of them when it is imported.
    local wheel
    built_wheel "$venv/bin/python" "$(grep -E '^(onedl-)?mmcv==' "$packages")" "$venv/mmcv.log" ||
        fail "mmcv could not be built; $root/$venv/mmcv.log says why"
    "$venv/bin/python" -m pip install --quiet "$wheel" -r "$packages" -r requirements/runtime.txt
    if ! "$venv/bin/python" -W ignore -c 'import mmcv.ops'; then
        rm -rf "$(dirname "$wheel")"
        fail "found a wheel of mmcv whose ops cannot be imported, wanted one that fits; removed it," \
            'run the same command again to build another'
    fi
    say 'Installing mmclipq and the test tools'
    "$venv/bin/python" -m pip install --quiet -r requirements/dev.txt -r requirements/export.txt
    "$venv/bin/python" -m pip install --quiet --no-build-isolation --no-deps --editable .
    "$venv/bin/python" -W ignore -c 'import mmcv.ops, mmclipq'
}

packages=requirements/lines/$line.txt
[ -f "$packages" ] ||
    fail "found the line $line, wanted one of: $(basename -s .txt requirements/lines/*.txt | xargs)"
stamp=$(cat requirements/*.txt "$packages" setup.py pyproject.toml | cksum)
if [ "$(cat "$venv/.mmclipq-stamp" 2>/dev/null)" != "$stamp" ]; then
    check_tools
    install
    echo "$stamp" >"$venv/.mmclipq-stamp"
    say 'The environment stands'
fi
# shellcheck disable=SC1091
. "$venv/bin/activate"
