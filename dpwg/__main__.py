"""`python -m dpwg`: see `dpwg.cli`."""

import sys

from dpwg.cli import main

sys.exit(main())
