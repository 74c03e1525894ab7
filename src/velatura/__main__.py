"""`python -m velatura` is `velatura`."""

import sys

from velatura.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
