"""`python -m vexport` and the `vexport` command."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line and exit with its code."""
    # A plain SIGTERM would skip the clean-up of what is half-written.
    signal.signal(signal.SIGTERM, _terminate)
    from vexport.cli.app import app

    app()


def _terminate(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
