#!/usr/bin/env bash
# Runs tests/raft, tests/kernels and tests/bench with the oldest versions that are supported, in .venv-oldest; a second run installs nothing.
#   scripts/oldest.sh [arguments of pytest]    PYTHON: a Python 3.12, WORKERS: test files at a time
# What is optional is missing, and the project is not installed: tests that need vLLM, TRL, Liger or datasets skip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-oldest

# The lower bounds stand in pyproject.toml and nowhere else.
oldest() {
  local name pin
  for name in "$@"; do
    pin=$(sed -nE "s/^ *\"($name)>=([0-9.]+).*/\1==\2/p" pyproject.toml)
    [ -n "$pin" ] || { echo "scripts/oldest.sh: pyproject.toml has no lower bound of $name" >&2; exit 1; }
    echo "$pin"
  done
}

torch=$(oldest torch triton)
others=$(oldest transformers accelerate sentence-transformers matplotlib jinja2)
# It has no bound: of the NumPys that come with new machines the first, and the reason for Python 3.12.
others+=" numpy==2.5"
# What the tests call besides, in any version.
others+=" safetensors pyarrow pydantic ruamel.yaml scipy tensorboard peft pytest pytest-benchmark pytest-timeout pytest-xdist hypothesis"

wanted="$torch $others"
if [ ! -x $venv/bin/python ] || [ "$(cat $venv/oldest-installed 2>/dev/null)" != "$wanted" ]; then
  python=${PYTHON:-python3.12}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    echo "scripts/oldest.sh: $python is no Python 3.12; name one with PYTHON=path" >&2
    exit 1
  fi
  echo "Installing into $venv; this happens once."
  "$python" -m venv --clear $venv
  # Names and versions are words of their own.
  # shellcheck disable=SC2086
  {
    $venv/bin/python -m pip install -qq $torch ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    $venv/bin/python -m pip install -qq $torch $others
  }
  echo "$wanted" >$venv/oldest-installed
fi

# Triton's interpreter of that age cannot run under that numpy.
exec $venv/bin/python -m pytest -q --numprocesses="${WORKERS:-2}" --dist=loadfile tests/raft tests/kernels tests/bench \
  --ignore=tests/kernels/test_triton_interpreter.py "$@"
