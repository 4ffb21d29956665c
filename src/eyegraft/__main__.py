"""`python -m eyegraft`."""

import sys

from eyegraft.cli import main

sys.exit(main())
