#!/usr/bin/env bash
# Makes the environment if needed and runs the tests:
#     bash tools/run_tests.sh [--line onedl] [pytest arguments]
# With a line, in an environment of its own with that line of MMDetection's packages.
if [ "${1:-}" = --line ]; then
    [ $# -ge 2 ] || { echo 'error: found --line alone, wanted --line onedl' >&2; exit 1; }
    export LINE=$2
    shift 2
fi
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
say 'Running the tests'
# A process for each core, each on one thread; tests of a file share what they set up. A process that
# dies ends the run: what others wait for would not come.
processes=${TEST_PROCESSES:-$(nproc)} # asked first: nproc heeds OMP_NUM_THREADS
export OMP_NUM_THREADS=1
exec python -m pytest -n "$processes" --dist loadfile --max-worker-restart 0 "$@"
