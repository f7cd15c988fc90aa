"""The one test command: `python -m tests` checks format, lint, types, imports, and runs all tests.

Arguments are handed on to pytest. With CI set, a test that was skipped for want of a program fails the run.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)


def main() -> int:
    """Run every check, even if one fails; 0 if all passed."""
    here = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
    failed = []
    pytest = ("pytest", "--cov", "--cov-report=term:skip-covered", *sys.argv[1:])
    for check in (*CHECKS, pytest):
        print(f"== {' '.join(check)}", flush=True)
        program = str(here / check[0])
        if subprocess.run([program, *check[1:]], cwd=ROOT, env=environment, check=False).returncode:
            failed.append(check[0])
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
