#!/usr/bin/env bash
# All tests; options go to pytest: scripts/test.sh -m "not slow" -k sampling
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" -m pytest "$@"
