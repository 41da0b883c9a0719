"""`python -m minitl`, the same as `minitl`."""

import sys

from minitl.cli import main

sys.exit(main())
