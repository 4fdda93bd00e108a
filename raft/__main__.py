"""`python -m raft`: the same as `raft`."""

import sys

from raft.cli import main

sys.exit(main())
