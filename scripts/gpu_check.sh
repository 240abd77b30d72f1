#!/usr/bin/env bash
# Check and measure what only a GPU can show; see video_gn/bench/README.md. --device cpu --small is a trial on a CPU.
# It makes no environment and installs nothing: PYTHON=... names the interpreter whose torch is used (python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# What pyproject.toml asks for, and pytest. A stage that lacks something fails by itself, so only torch must be there.
missing=$("$PYTHON" - <<'PYTHON'
import re, tomllib
from importlib.metadata import PackageNotFoundError, version

with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"]
for requirement in [*wanted, "pytest>=8", "torchcodec>=0.12"]:
    try:
        version(re.match(r"[\w.-]+", requirement)[0])
    except PackageNotFoundError:
        print(f"'{requirement}'", end=" ")
PYTHON
)
if [ -n "$missing" ]; then
    echo "not installed for $PYTHON; what needs it will fail: $PYTHON -m pip install $missing" >&2
fi
"$PYTHON" -c 'import torch' || { echo "torch is needed: PYTHON=... names an interpreter that has it" >&2; exit 2; }
exec "$PYTHON" -m video_gn.bench.gpu_check "$@"
