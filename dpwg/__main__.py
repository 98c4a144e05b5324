"""`python -m dpwg`: see `dpwg.cli`."""

import sys

from dpwg.launch import launching

with launching():
    from dpwg.cli import main

    sys.exit(main())
