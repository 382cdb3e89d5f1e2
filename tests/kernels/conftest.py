"""Interpreted tests need a process of their own, with Triton's interpreter or a GPU: see test_interpreted.py."""

import os

chosen = os.environ.get("TRITON_INTERPRET") == "1" or os.environ.get("KERNEL_TESTS_ON_GPU") == "1"
collect_ignore = [] if chosen else ["interpreted"]
