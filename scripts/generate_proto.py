"""Generate the Python code of the protos into ``src/``; with ``--check`` only compare it.

Needs the ``dev`` extra. The annotations of protovalidate travel inside the generated descriptors,
through an option-only import, so that a client needs neither that library nor its schema.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "proto"
TARGET = Path("memfold/api/v1")


def generate(out: Path) -> None:
    """Run protoc over every proto of ours."""
    files = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / TARGET).glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{PROTOS / 'third_party'}"]
    command += [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, *files], check=True)


def main() -> int:
    """Generate, or say what differs; the exit code is 1 on a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, change nothing")
    check: bool = parser.parse_args().check
    if not check:
        generate(ROOT / "src")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = Path(folder) / TARGET, ROOT / "src" / TARGET
        names = [p.name for p in fresh.iterdir()]
        _, different, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    for name in different + missing:
        print(f"{TARGET / name} is not what the protos say; run `make proto`", file=sys.stderr)
    return 1 if different or missing else 0


if __name__ == "__main__":
    sys.exit(main())
