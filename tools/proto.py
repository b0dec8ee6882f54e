"""Generates src/starloom/v1 from proto/, or with --check says whether what is committed is current."""

import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
COMMITTED = ROOT / "src" / "starloom" / "v1"
HEADER = '"""The wire, generated from proto/ by `make proto`."""\n'


def generate(into: Path) -> dict[str, bytes]:
    """The generated files by name, made below `into`. Raises CalledProcessError with protoc's words."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("starloom/v1/*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    places = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{well_known}", *places, *sources]
    subprocess.run(command, check=True)
    made = into / "starloom" / "v1"
    (made / "__init__.py").write_text(HEADER)
    return {path.name: path.read_bytes() for path in sorted(made.iterdir()) if path.is_file()}


def lint() -> int:
    """buf's opinion of proto/, by the buf that its PyPI package carries."""
    return subprocess.run([str(Path(sys.executable).with_name("buf")), "lint", str(PROTO)], check=False).returncode


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Path(folder))
    if "--check" in sys.argv[1:]:
        committed = {path.name: path.read_bytes() for path in COMMITTED.glob("*.py*") if path.is_file()}
        if stale := sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name)):
            sys.stderr.write(f"src/starloom/v1 is not current ({', '.join(stale)}); run `make proto`\n")
            return 1
        return lint()
    COMMITTED.mkdir(exist_ok=True)
    for old in COMMITTED.glob("*.py*"):
        old.unlink()
    for name, data in made.items():
        (COMMITTED / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
