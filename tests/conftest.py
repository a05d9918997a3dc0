"""One thread for each test process, before torch is imported: as many processes as cores run at once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
