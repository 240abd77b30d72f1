#!/usr/bin/env bash
# Run the tests except the slow ones. Options go to pytest: scripts/test.sh -k sampling, scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# Two processes, each with its own test files: the tests often wait for runs that they kill.
[ $# -gt 0 ] || set -- -m "not slow" --numprocesses 2 --dist loadfile
# The networks are tiny: threads would cost more time than they save.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest "$@"
