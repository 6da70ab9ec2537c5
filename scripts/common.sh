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
print(sys.executable)
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
