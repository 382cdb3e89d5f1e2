"""Interpreted tests need a process in which Triton was imported with its interpreter: see test_interpreted.py."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
