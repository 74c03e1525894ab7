"""Check the types of the page's JavaScript: `python -m tools.check_page`, which `make types` runs.

The types stand in JSDoc comments, and TypeScript reads them. npm installs it once, into the environment. Where npm is
missing or cannot install it, the check says so and is left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

TYPESCRIPT = "7.0.2"
PAGE_FOLDER = Path(__file__).resolve().parent.parent / "src/velatura/server/page"
OPTIONS = (
    *(
        "--allowJs",
        "--checkJs",
        "--noEmit",
        "--strict",
        "--noUnusedLocals",
        "--noUnusedParameters",
        "--noImplicitReturns",
    ),
    *("--target", "es2024", "--lib", "es2024,dom,dom.iterable", "--module", "esnext", "--moduleResolution", "bundler"),
    *("--types", ""),
)
INSTALL_SECONDS = 120


def install_typescript(folder: Path) -> Path | None:
    """Return the compiler, installed by npm into a folder if it is not there; None without npm or a registry.

    Args:
        folder: Where it is kept.
    """
    compiler = folder / "node_modules/typescript/bin/tsc"
    manifest = folder / "package.json"
    content = json.dumps({"private": True, "dependencies": {"typescript": TYPESCRIPT}})
    if compiler.is_file() and manifest.read_text("utf-8") == content:
        return compiler
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        print("the page's JavaScript is not checked: install node and npm")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write_text(content, "utf-8")
    command = [npm, "install", "--no-fund", "--no-audit", "--ignore-scripts", "--prefer-offline", "--fetch-retries=0"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (subprocess.SubprocessError, OSError):
        print("the page's JavaScript is not checked: npm could not install typescript")
        return None
    return compiler


def main() -> int:
    """Check every module of the page, and return the exit status of the compiler."""
    compiler = install_typescript(Path(sys.prefix) / "typescript")
    if compiler is None:
        return 0
    modules = sorted(str(path) for path in PAGE_FOLDER.rglob("*.js"))
    status = subprocess.run(["node", str(compiler), *OPTIONS, *modules], check=False).returncode
    if status == 0:
        print(f"{len(modules)} modules of the page checked")
    return status


if __name__ == "__main__":
    sys.exit(main())
