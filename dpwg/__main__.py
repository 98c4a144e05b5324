"""`python -m dpwg`: see `dpwg.cli`."""

import os
import sys

from dpwg.launch import launching

# Two busy processes on few cores stall each other when OpenMP threads spin; set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

with launching():
    from dpwg.cli import main

    sys.exit(main())
