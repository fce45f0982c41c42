#!/usr/bin/env bash
# Makes the environment if needed and runs the tests: bash tools/run_tests.sh [pytest arguments]
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
say 'Running the tests'
# A process for each core, each on one thread; tests of a file share what they set up.
export OMP_NUM_THREADS=1
exec python -m pytest -n "${TEST_PROCESSES:-$(nproc)}" --dist loadfile "$@"
