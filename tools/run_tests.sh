#!/usr/bin/env bash
# Makes the environment if needed and runs the tests: bash tools/run_tests.sh [pytest arguments]
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
say 'Running the tests'
# A process for each core, each on one thread; tests of a file share what they set up. A process that
# dies ends the run: what others wait for would not come.
processes=${TEST_PROCESSES:-$(nproc)} # asked first: nproc heeds OMP_NUM_THREADS
export OMP_NUM_THREADS=1
exec python -m pytest -n "$processes" --dist loadfile --max-worker-restart 0 "$@"
