#!/usr/bin/env bash
# The step of action.yml that runs the gate and tells GitHub how it went; it ends as `onnxcomp check` does.
#
# Inputs come as environment variables, and each is one word of the call, whatever it holds. Nothing of them is written to
# GITHUB_OUTPUT, and while the gate prints, GitHub takes no commands from what it prints: names in a model may be anybody's.
set -uo pipefail

wrong() {
  echo "onnxcomp action: error: $1" >&2
  exit 2
}

[ -n "${INPUT_MODEL:-}" ] || wrong "the input 'model' is empty; give the path of the ONNX file to check"
folder=$(mktemp -d "${RUNNER_TEMP:-${TMPDIR:-/tmp}}/onnxcomp-check.XXXXXXXXXX") || wrong "no folder for the reports could be made"

call=(onnxcomp check "--report=$folder/report.json" "--markdown=$folder/summary.md" "--sarif=$folder/check.sarif")
add() { [ -z "$2" ] || call+=("$1=$2"); }
add --against "${INPUT_AGAINST:-}"
add --budget "${INPUT_BUDGET:-}"
add --target "${INPUT_TARGET:-}"
add --eval "${INPUT_EVAL:-}"
add --data "${INPUT_DATA:-}"

# Words as a shell cuts them, without anything being expanded.
python -c 'import os, shlex, sys
words = shlex.split(os.environ.get("INPUT_ARGS", ""))
sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))' > "$folder/args" 2> /dev/null ||
  wrong "the input 'args' cannot be cut into words; is a quote left open?"
while IFS= read -r -d '' word; do
  case $word in
    --markdown | --markdown=* | --sarif | --sarif=*) wrong "the input 'args' has ${word%%=*}, which the action gives itself" ;;
    --) wrong "the input 'args' has a bare --" ;;
  esac
  call+=("$word")
done < "$folder/args"

token=$(basename "$folder")
echo "::stop-commands::$token"
"${call[@]}" -- "$INPUT_MODEL" 2> "$folder/errors"
code=$?
if [ "$code" = 0 ] && [ ! -s "$folder/report.json" ]; then # such as --help
  echo "onnxcomp action: error: nothing was checked; is there --help in the input 'args'?" >> "$folder/errors"
  code=2
fi
cat "$folder/errors" # not to stderr, which GitHub may read later than the end of this
echo "::$token::"

if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
  if [ -s "$folder/summary.md" ]; then
    head -c 1000000 "$folder/summary.md" # GitHub takes a mebibyte of a step
  else
    printf 'onnxcomp check ended with %d:\n\n' "$code"
    sed 's/^/    /' "$folder/errors"
  fi >> "$GITHUB_STEP_SUMMARY"
fi
if [ -n "${GITHUB_OUTPUT:-}" ]; then
  {
    if [ "$code" = 0 ]; then echo "passed=true"; else echo "passed=false"; fi
    if [ -s "$folder/report.json" ]; then echo "report=$folder/report.json"; fi
    if [ -s "$folder/check.sarif" ]; then echo "sarif=$folder/check.sarif"; fi
  } >> "$GITHUB_OUTPUT"
fi
exit "$code"
