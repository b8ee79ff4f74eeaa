#!/usr/bin/env bash
# Make sure that there is a Chromium for the tests that open reports: the system's, a distribution's package, or playwright's.
set -uo pipefail
python=$1
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$name" > /dev/null && exit 0
done
"$python" - << 'FOUND' && exit 0
import sys
from pathlib import Path
from playwright.sync_api import sync_playwright

with sync_playwright() as p:
    sys.exit(not Path(p.chromium.executable_path).exists())
FOUND
root=""
[ "$(id -u)" = 0 ] || root="sudo -n"
if command -v apt-get > /dev/null && $root true 2> /dev/null; then
  log=$(mktemp)
  for _ in 1 2 3; do # mirrors have bad moments
    $root apt-get update -qq > "$log" 2>&1
    if $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >> "$log" 2>&1; then
      rm -f "$log"
      exit 0
    fi
    sleep 5
  done
  tail -3 "$log" >&2
fi
"$python" -m playwright install chromium > /dev/null 2>&1 && exit 0
echo "no Chromium was found or could be installed: the tests that open reports in a browser are skipped" >&2
exit 0
