#!/usr/bin/env bash
# Build the wheel from the source distribution, install it in a clean environment and run the tests against it there.
set -euo pipefail
python=$(realpath -s "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --outdir "$work/dist" "$root" > "$work/build.log" 2>&1 || { tail -20 "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
wheel=$(echo "$work"/dist/*.whl)
"$work/venv/bin/pip" install -q --disable-pip-version-check "$wheel[test]"

# Only the tests and what they read; the checkout's packages stay behind, so that nothing but the wheel can be imported.
# Real models are not linked in: the checkout's own run has been over them.
mkdir "$work/run"
cp -r "$root/tests" "$root/models" "$root/docs" "$root/benchmarks" "$root/scripts" "$work/run/"
cp "$root"/*.md "$root/LICENSE" "$root/pyproject.toml" "$root/action.yml" "$root/.pre-commit-hooks.yaml" "$work/run/"
rm "$work/run/tests/test_architecture.py" # it reads the checkout's sources
cd "$work/run"
for name in passes cli; do
  if "$work/venv/bin/python" -c "import $name" 2> /dev/null; then echo "'import $name' works; it must not"; exit 1; fi
done
"$work/venv/bin/python" -c "import onnxcomp.cli.main, onnxcomp.passes.int8 as m; assert m.__file__.startswith('$work/venv/'), m.__file__"
OMP_NUM_THREADS=1 "$work/venv/bin/pytest" -q -n 2 --dist worksteal -m "not slow"
