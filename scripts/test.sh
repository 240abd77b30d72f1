#!/usr/bin/env bash
# The tests, but for the slow proofs; options go to pytest: scripts/test.sh -k sampling, scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# Two processes, each with files of its own: much of the time is spent waiting for runs that are killed.
[ $# -gt 0 ] || set -- -m "not slow" --numprocesses 2 --dist loadfile
# The networks are tiny: threads that wait for each other cost more than they bring.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest "$@"
