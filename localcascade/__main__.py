"""`python -m localcascade`, where the script is not on the path."""

from __future__ import annotations

from localcascade.cli.app import main

if __name__ == "__main__":
    main()
