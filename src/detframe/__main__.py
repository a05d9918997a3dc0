"""``python -m detframe``."""

import sys

from detframe.cli import main

sys.exit(main())
