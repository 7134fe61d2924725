"""`python -m windfire` is the command `windfire`."""

from __future__ import annotations

from windfire.cli import main

if __name__ == "__main__":
    main()
