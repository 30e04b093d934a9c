# Chromium and what drives it, for the tests of the dashboard; sourced after common.sh.

# need_browser: Debian's Chromium, and the Python environment .cache/browser with Playwright and axe-core.
need_browser() {
    need chromium chromium fonts-dejavu-core
    venv browser "$REPO/scripts/lib/requirements-browser.txt"
}
