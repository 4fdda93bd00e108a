#!/usr/bin/env bash
# Runs tests/raft, tests/kernels and tests/bench with the oldest supported versions, in .venv-oldest. A second run
# installs nothing.
#   scripts/oldest.sh [pytest arguments]    PYTHON: a Python 3.12, WORKERS: test files in parallel
# Optional packages and the project itself are not installed: tests that need vLLM, TRL, Liger or datasets are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-oldest

# pyproject.toml has the lower bounds.
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
# numpy has no lower bound. This is the first version that new machines come with; it needs Python 3.12.
others+=" numpy==2.5"
# Further packages of the tests, in any version.
others+=" safetensors pyarrow pydantic ruamel.yaml scipy openai tensorboard peft"
others+=" pytest pytest-benchmark pytest-timeout pytest-xdist hypothesis"

wanted="$torch $others"
if [ ! -x $venv/bin/python ] || [ "$(cat $venv/oldest-installed 2>/dev/null)" != "$wanted" ]; then
  python=${PYTHON:-python3.12}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    echo "scripts/oldest.sh: $python is no Python 3.12; name one with PYTHON=path" >&2
    exit 1
  fi
  echo "Installing into $venv; this happens once."
  "$python" -m venv --clear $venv
  # Unquoted, because each package is a separate argument.
  # shellcheck disable=SC2086
  {
    $venv/bin/python -m pip install -qq $torch ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    $venv/bin/python -m pip install -qq $torch $others
  }
  echo "$wanted" >$venv/oldest-installed
fi

# The interpreter of the oldest Triton does not run with this numpy.
exec $venv/bin/python -m pytest -q --numprocesses="${WORKERS:-2}" --dist=loadfile tests/raft tests/kernels tests/bench \
  --ignore=tests/kernels/test_triton_interpreter.py "$@"
