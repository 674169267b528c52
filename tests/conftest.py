"""Shared by all tests: the tests folder is importable, engines stay quiet and single-threaded."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))
# Started in the background of a script, this process would ignore Ctrl-C and pass that on to the
# commands that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
