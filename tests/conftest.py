"""Fixtures and options of all tests."""

import os
import signal

from nvmeof.target.queue.fast_path import FastPath

pytest_plugins = ["tests.refusals"]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell sets this for background jobs, and processes that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.get("NVMEOF_TEST_FAST_PATH") == "off":
    # Each command of a target's queue takes the general path; the tests are the same.
    FastPath.learn = lambda self, *arguments, **options: None  # type: ignore[method-assign]
