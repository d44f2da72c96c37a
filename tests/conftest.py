"""For all tests."""

import signal

pytest_plugins = ["tests.refusals"]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what goes to the background like that, and what tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
