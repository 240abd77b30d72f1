# Sourced by demo.sh and test.sh: makes .venv with the system's Python and installs the package, unless it is there.
# Sets PYTHON to the environment's interpreter.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
INSTALLED_GB=7.2   # torch with CUDA, torchvision and the rest
NEEDED_GB=11       # and what pip downloads until it is unpacked

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

# Installs with pip, and shows how far it is: one updating line on a terminal, elsewhere a line every ten seconds.
install() {
    local log=$VENV/install.log pid start=$SECONDS seconds=0 every=10 text
    [ -t 2 ] && every=1
    "$VENV/bin/python" -m pip install --progress-bar off --disable-pip-version-check "$@" > "$log" 2>&1 &
    pid=$!
    # What bash starts with & ignores Ctrl-C.
    trap 'kill $pid 2>/dev/null; echo >&2; fail "stopped; the same command installs the rest"' INT TERM
    while kill -0 $pid 2>/dev/null; do
        if ((SECONDS - start >= seconds + every)); then
            seconds=$((SECONDS - start))
            # pip's newest step: a package to find, a file to download, or all of them to unpack.
            text=$(awk '/^Collecting/ {n++; step = "collecting " $2}
                /^  Downloading/ {name = $2; sub(/-(cp|py)[0-9].*/, "", name); step = "downloading " name
                    if ($2 !~ /metadata/) step = step " " $(NF - 1) " " $NF}
                /^Installing/ {step = "installing"} END {print n + 0, "packages,", step}' "$log")
            case $text in
                *installing*) text="installing, $(du -sm "$VENV" | awk '{printf "%.1f", $1 / 1024}') of $INSTALLED_GB GB" ;;
            esac
            text=$(printf 'set-up: %d:%02d, %s' $((seconds / 60)) $((seconds % 60)) "$text")
            if [ -t 2 ]; then printf '\r\033[K%.79s' "$text" >&2; else echo "$text" >&2; fi
        fi
        sleep 1
    done
    [ -t 2 ] && printf '\r\033[K' >&2
    trap - INT TERM
    wait $pid || { tail -n 15 "$log" >&2; return 1; }
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
    echo "set-up: installing into $VENV (a few minutes and $INSTALLED_GB GB the first time)"
    install --constraint scripts/constraints.txt --editable '.[dev]' \
        || fail "pip could not install the package; see its message above"
    echo "$wanted" > "$VENV/.installed"
fi
PYTHON=$VENV/bin/python
PATH="$(cd "$VENV" && pwd)/bin:$PATH"
export PATH
