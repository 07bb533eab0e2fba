"""Where the program begins: the script `localcascade`, and `python -m localcascade`."""

from __future__ import annotations

import gc

GC_THRESHOLD = 50_000
"""Python's 700 looks through what is imported hundreds of times: a tenth of the start."""


def main() -> None:
    """Run the command line."""
    gc.set_threshold(GC_THRESHOLD)
    from localcascade.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
