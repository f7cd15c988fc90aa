"""`sentinel`, and `python -m sentinel`."""

from __future__ import annotations

import sys

from sentinel.commands.app import app


def main() -> None:
    """Run the command line, then exit: 0 ok, 1 failed, 2 usage or configuration, 130 interrupted."""
    try:
        app(prog_name="sentinel")
    except KeyboardInterrupt:  # while starting or ending; a command's own is met in app
        sys.exit(130)


if __name__ == "__main__":
    main()
