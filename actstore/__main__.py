"""`python -m actstore` is the same as `actstore`."""

from __future__ import annotations

import sys

from actstore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
