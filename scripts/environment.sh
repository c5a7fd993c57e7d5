#!/bin/sh
# Make a Python environment in the folder $1 with the interpreter $PYTHON; say what to do when that cannot be.
set -eu
folder=$1
python=${PYTHON:-python3}

fail() {
    printf '\n%s\n' "$@" >&2
    rm -rf "$folder"
    exit 1
}

[ -n "$python" ] && command -v "$python" >/dev/null 2>&1 || fail \
    "No Python found. Install Python 3.11 or newer, on Debian and Ubuntu:" \
    "    sudo apt-get install -y python3 python3-venv"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail \
    "$python is $("$python" -V 2>&1), but shoal needs Python 3.11 or newer." \
    "Install one, or name it: make PYTHON=/path/to/python3.11 ..."

rm -rf "$folder"
if "$python" -m venv "$folder" >"${TMPDIR:-/tmp}/shoal-venv.$$" 2>&1 && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -f "${TMPDIR:-/tmp}/shoal-venv.$$"
    exit 0
fi
reason=$(tail -n 3 "${TMPDIR:-/tmp}/shoal-venv.$$")
rm -f "${TMPDIR:-/tmp}/shoal-venv.$$"
rm -rf "$folder"

# Without the venv module one of these may be at hand.
if command -v uv >/dev/null 2>&1 && uv venv --quiet --seed --python "$python" "$folder"; then exit 0; fi
if command -v virtualenv >/dev/null 2>&1 && virtualenv --quiet --python "$python" "$folder"; then exit 0; fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
fail "Cannot make an environment with $python: $reason" \
    "Python's venv module is missing. On Debian and Ubuntu install it, then run make again:" \
    "    sudo apt-get install -y python$version-venv"
