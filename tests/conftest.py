"""What all tests share."""

from __future__ import annotations

import signal

# Tests signal processes of their own, which ignore what this one does: SIGINT where a script
# started it in the background, SIGHUP under nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
