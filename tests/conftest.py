"""What has to be set before torch and jsonargparse are imported, for all test processes and what they start."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores run at once
# Of Lightning's calls, once in a process, and so in whatever test comes first.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job; what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
