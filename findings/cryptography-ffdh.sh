#!/usr/bin/env bash
# cryptography 50.0.2 announces that finite-field Diffie-Hellman will be removed, and computes it with Python's global lock
# taken: an exchange in a thread stops every other thread for as long as it takes (9 ms for a prime of 8,192 bits), so that
# run_in_executor does not help an event loop. hashlib.pbkdf2_hmac of about the same length lets them go on.
# What needs this: DH-HMAC-CHAP of NVMe over Fabrics knows the groups ffdhe2048 to ffdhe8192 of RFC 7919 and no others.
#
# Seen with cryptography 50.0.2 on CPython 3.11, Linux x86-64, two cores, in four runs beside other work: 1.1 to 2.5 wake-ups
# of another thread per exchange (it sleeps 0.5 ms at a time), 35 to 61 per pbkdf2_hmac; and the warning
#   Diffie-Hellman over finite fields (FFDH) is deprecated and support will be removed in a future release.
# Fails when that has changed. Needs a package index; not part of the tests.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'cryptography==50.0.2'
openssl genpkey -algorithm DH -pkeyopt group:ffdhe8192 -out "$work/one.pem" 2>/dev/null
openssl genpkey -algorithm DH -pkeyopt group:ffdhe8192 -out "$work/two.pem" 2>/dev/null
"$work/venv/bin/python" - "$work/one.pem" "$work/two.pem" <<'PY'
import hashlib
import sys
import threading
import time
import warnings
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    one, two = (load_pem_private_key(Path(name).read_bytes(), None) for name in sys.argv[1:])
    public = two.public_key()
    one.exchange(public)
words = {str(each.message).split(".")[0] for each in caught}
print("warnings:", *sorted(words) or ["none"])


def wake_ups(work, times):
    """How often another thread wakes up while `work` is done once, on average."""
    count, done = 0, threading.Event()

    def sleeper():
        nonlocal count
        while not done.is_set():
            time.sleep(0.0005)
            count += 1

    thread = threading.Thread(target=sleeper)
    thread.start()
    time.sleep(0.01)
    count = 0
    for _ in range(times):
        work()
    done.set()
    seen = count
    thread.join()
    return seen / times


exchange = wake_ups(lambda: one.exchange(public), 40)
control = wake_ups(lambda: hashlib.pbkdf2_hmac("sha256", b"key", b"salt", 25_000), 40)
print(f"wake-ups of another thread: {exchange:.1f} per exchange, {control:.1f} per pbkdf2_hmac")
held = exchange * 5 < control
removed_soon = any("FFDH" in each and "removed" in each for each in words)
print("as seen before" if held and removed_soon else "otherwise than seen before")
sys.exit(not (held and removed_soon))
PY
