#!/bin/sh
# Install torch into an environment: with CUDA where there is an NVIDIA driver, else the CPU build,
# never gigabytes of CUDA packages for a machine without a GPU.
#
#   scripts/install_torch.sh PATH/TO/PYTHON
#
# TORCH_INDEX names a package index to take it from, whatever the machine.
set -eu
python=$1
want="torch==2.13.0"

if "$python" -c 'import torch' 2>/dev/null; then exit 0; fi

if [ -n "${TORCH_INDEX:-}" ]; then
    exec "$python" -m pip install --quiet "$want" --index-url "$TORCH_INDEX"
fi
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    exec "$python" -m pip install --quiet "$want"
fi
# Which build would pip take by itself? One whose version does not end in +cpu brings CUDA along on Linux.
version=$("$python" -m pip install --quiet --dry-run --no-deps --ignore-installed --report - "$want" 2>/dev/null |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' || echo none)
case "$(uname -s):$version" in
    *:*+cpu | Darwin:*) exec "$python" -m pip install --quiet "$want" ;;
    *) exec "$python" -m pip install --quiet "$want" --index-url https://download.pytorch.org/whl/cpu ;;
esac
