"""``python -m detframe``."""

import sys

from detframe.cli import main

if __name__ == "__main__":  # loader processes that are spawned import this file again
    sys.exit(main())
