# Shared by the scripts of this folder; sourced, never run. Sets REPO and CACHE.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=$REPO/.cache

if [ -t 1 ]; then BOLD=$'\e[1m' RED=$'\e[31m' RESET=$'\e[0m'; else BOLD='' RED='' RESET=''; fi
STEP_COUNT=0

# step TEXT: starts a numbered phase, with the time since the script began.
step() {
    STEP_COUNT=$((STEP_COUNT + 1))
    printf '%s[%d] %s%s (%d s)\n' "$BOLD" "$STEP_COUNT" "$*" "$RESET" "$SECONDS"
}

# note TEXT: one line of progress inside a phase.
note() { printf '    %s\n' "$*"; }

# die TEXT: says what is wrong and ends the script.
die() {
    printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$RESET" >&2
    exit 1
}

# quietly LOG COMMAND...: runs a command with its output in LOG, and shows the end of it if it fails.
quietly() {
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "failed: $* (all of its output: $log)"
    fi
}

# need COMMAND PACKAGE...: makes sure that COMMAND exists, with Debian's packages if it does not.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null 2>&1 && return
    install_packages "$command is missing" "$@"
}

# install_packages REASON PACKAGE...: apt-get install, as root or through sudo.
install_packages() {
    local reason=$1 as_root=()
    shift
    command -v apt-get >/dev/null || die "$reason, and there is no apt-get here: please install $*"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "$reason: as root, run 'apt-get install $*'"
        as_root=(sudo)
    fi
    note "$reason: installing $* with apt-get"
    if [ -z "${APT_UPDATED:-}" ]; then
        quietly "$CACHE/log/apt-update.log" "${as_root[@]}" apt-get update -qq
        APT_UPDATED=1
    fi
    quietly "$CACHE/log/apt-install.log" \
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# need_rust: cargo and rustc, new enough for the workspace. There is no safe way to guess how
# somebody wants Rust installed, so this one is asked for.
need_rust() {
    command -v cargo >/dev/null || die "Rust is missing: install it from https://rustup.rs, then run this again"
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
        die "rustc $have is too old, $want or newer is needed: run 'rustup update'"
}

need_compilers() {
    need gcc gcc libc6-dev
    need g++ g++
    need ar binutils
    need make make
}

# need_venv_module: python3 with the two modules that a virtual environment is made with.
need_venv_module() {
    need python3 python3 python3-venv
    python3 -c 'import venv, ensurepip' 2>/dev/null ||
        install_packages "python3 cannot make virtual environments" python3-venv
}

# venv NAME FILE: a virtual environment .cache/NAME with the pinned packages of FILE. It is kept as
# long as FILE and the Python version stay the same. Prints nothing if there is nothing to do.
venv() {
    local dir=$CACHE/$1 requirements=$2 stamp
    need_venv_module
    stamp="$(python3 --version) $(sha256sum <"$requirements")"
    [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ] && return
    note "Python packages of ${requirements#"$REPO"/} into ${dir#"$REPO"/}"
    rm -rf "$dir"
    quietly "$CACHE/log/venv-${1//\//-}.log" python3 -m venv "$dir"
    quietly "$CACHE/log/pip-${1//\//-}.log" "$dir/bin/python" -m pip install \
        --disable-pip-version-check --no-deps --only-binary :all: --progress-bar off -r "$requirements"
    printf '%s\n' "$stamp" >"$dir/.stamp"
}

# site_packages NAME: where that environment's packages lie.
site_packages() { echo "$CACHE/$1"/lib/python3*/site-packages; }

# target_dir: where cargo puts what it builds.
target_dir() {
    cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}
