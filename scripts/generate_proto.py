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
PACKAGES = (Path("memfold/api/v1"), Path("memfold/reader/v1"))


def generate(out: Path) -> None:
    """Run protoc over every proto of ours."""
    files = sorted(str(p.relative_to(PROTOS)) for package in PACKAGES for p in (PROTOS / package).glob("*.proto"))
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
        stale = [path for package in PACKAGES for path in _stale(package, Path(folder))]
    for path in stale:
        print(f"{path} is not what the protos say; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def _stale(package: Path, generated: Path) -> list[Path]:
    """Which files of a package differ from those that were just generated."""
    fresh = generated / package
    names = [p.name for p in fresh.iterdir()]
    _, different, missing = filecmp.cmpfiles(fresh, ROOT / "src" / package, names, shallow=False)
    return [package / name for name in different + missing]


if __name__ == "__main__":
    sys.exit(main())
