"""`python -m dpwg`: see `dpwg.cli`."""

import os
import sys

# Two busy processes on few cores stall each other when OpenMP threads spin; set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    from dpwg.cli import main

    sys.exit(main())
except ModuleNotFoundError as error:  # of a package: the verbs tell of what is theirs
    print(
        f"dpwg: Expected the package {error.name!r} to be installed for {sys.executable}; activate "
        "the environment that has it, or run `pip install -r requirements.txt`.",
        file=sys.stderr,
    )
    sys.exit(2)
