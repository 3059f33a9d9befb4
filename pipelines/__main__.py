"""`python -m pipelines`, the same as `rtp`."""

import sys

from pipelines.cli import main

sys.exit(main())
