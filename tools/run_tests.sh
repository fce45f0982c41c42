#!/usr/bin/env bash
# Makes the environment if needed and runs the tests: bash tools/run_tests.sh [pytest arguments]
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
say 'Running the tests'
exec python -m pytest "$@"
