# shellcheck shell=bash
# Sourced by scripts/check and .ci/run: words for the user, and where a Python is.

say() { printf '\n== %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Print the real interpreter behind $1 if it runs and its version lies between $2 and $3 (as 3.11 3.13).
# A version manager's shim exists for versions that are not chosen and then fails, so it is run, not looked at.
real_python() {
    "$1" -c '
import sys
low, high = (tuple(map(int, v.split("."))) for v in sys.argv[1:])
if not low <= sys.version_info[:2] <= high:
    sys.exit(1)
print(getattr(sys, "_base_executable", None) or sys.executable)  # of an activated environment: what it was made from
' "$2" "$3" 2>/dev/null
}

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Print the first Python from version $1 to version $2 that can make a virtual environment; failing that,
# the first of that version at all, with status 2; failing that, nothing, with status 1.
find_python() {
    local low=$1 high=$2 name real lame=
    local -a names=()
    for name in python3.11 python3.12 python3.13 python3.14 python3; do
        names+=("$name" "${PYENV_ROOT:-${HOME-}/.pyenv}"/versions/*/bin/"$name"
            "${HOME-}"/.local/share/uv/python/*/bin/"$name" "${HOME-}/.local/bin/$name"
            "/usr/local/bin/$name" "/usr/bin/$name" /opt/*/bin/"$name")
    done
    for name in "${names[@]}"; do
        command -v -- "$name" >/dev/null || continue
        real=$(real_python "$name" "$low" "$high") || continue
        if can_make_venv "$real"; then
            printf '%s\n' "$real"
            return 0
        fi
        lame=${lame:-$real}
    done
    [ -n "$lame" ] || return 1
    printf '%s\n' "$lame"
    return 2
}

# Choose the Python: $CHECK_PYTHON, or the first that fits. Sets $python.
choose_python() {
    if [ -n "${CHECK_PYTHON-}" ]; then
        python=$(real_python "$CHECK_PYTHON" 3.11 3.99) ||
            die "cannot use CHECK_PYTHON=$CHECK_PYTHON: it does not run, or is older than Python 3.11"
    else
        python=$(find_python 3.11 3.99) || [ $? = 2 ] ||
            die "cannot find Python 3.11 or newer: install one, or name it in CHECK_PYTHON"
    fi
}

# Make the environment $1 hold agentd from this checkout with the extras $2 (as [dev], or nothing), if it does not yet.
# An environment of the same Python is added to. The checkout's path is part of what it is made from: a copied one
# points at the original.
make_environment() {
    local venv=$1 extras=$2 base wanted mark
    # The Python of an environment that is there is kept, unless another one is asked for.
    if [ -n "${CHECK_PYTHON-}" ] || ! python=$(real_python "$venv/bin/python" 3.11 3.99); then choose_python; fi
    base=$(printf '%s\n' "$root" "$venv" && "$python" -c 'import sys; print(sys.executable, sys.version)')
    wanted=$(printf '%s\n' "$base" && cat "$root/pyproject.toml" "$root/constraints.txt")
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/made-from$extras" 2>/dev/null)" = "$wanted" ]; then return; fi
    say "environment: $venv ($("$python" -V))"
    can_make_venv "$python" ||
        die "cannot make $venv: $python lacks venv or ensurepip (Debian: apt install python3-venv)"
    { mkdir -p "$venv" && [ -w "$venv" ]; } 2>/dev/null ||
        die "cannot make $venv: no permission to write there; name another folder in CHECK_VENV"
    if [ "$(cat "$venv/made-by" 2>/dev/null)" != "$base" ]; then
        "$python" -m venv --clear "$venv" || die "cannot make $venv: $python -m venv failed, see above"
        printf '%s\n' "$base" >"$venv/made-by"
    fi
    for mark in "$venv/made-from"*; do # what was made from the same is still there
        [ "$(cat "$mark" 2>/dev/null)" = "$wanted" ] || rm -f -- "$mark"
    done
    rm -f "$venv/made-from$extras"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root$extras" ||
        die "cannot install agentd$extras into $venv: pip failed, see above"
    printf '%s\n' "$wanted" >"$venv/made-from$extras"
    [ "$extras" != "[dev]" ] || printf '%s\n' "$wanted" >"$venv/made-from[agent]" # it has what scripts/demo needs, too
}

# Run the rest of the line with a lock on the checkout: two runs in it must not build the same environment.
one_at_a_time() {
    if command -v flock >/dev/null; then flock 9; fi
    "$@" 9>&-
}
