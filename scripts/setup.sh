# Sourced by demo.sh and test.sh: makes .venv with the system's Python and installs the package, unless it is there.
# Sets PYTHON to the environment's interpreter.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
NEEDED_GB=9   # torch with CUDA, torchvision and the rest: 5.5 GB, and as much again while pip unpacks the largest

fail() { echo "set-up: $*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${BASE_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; python3 here is $(python3 --version 2>&1 || echo missing). Install one, or name it: BASE_PYTHON=/path/to/python3.12 bash $0"
}

# A change of either file installs again.
wanted=$(cat pyproject.toml scripts/constraints.txt | cksum)
if [ "$(cat "$VENV/.installed" 2>/dev/null)" != "$wanted" ]; then
    base=$(find_python)
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        free_gb=$(($(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 {print $4}') / 1024 / 1024))
        [ "$free_gb" -ge "$NEEDED_GB" ] || fail "$NEEDED_GB GB of free disk are needed for $VENV, there are $free_gb GB in $PWD"
        "$base" -c 'import venv, ensurepip' 2>/dev/null || fail "$base has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
        echo "set-up: making $VENV with $("$base" --version)"
        "$base" -m venv "$VENV"
    fi
    echo "set-up: installing into $VENV (a few minutes and 5.5 GB the first time)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt --editable '.[dev]' \
        || fail "pip could not install the package; see its message above"
    echo "$wanted" > "$VENV/.installed"
fi
PYTHON=$VENV/bin/python
PATH="$(cd "$VENV" && pwd)/bin:$PATH"
export PATH
