#!/usr/bin/env bash
# google-crc32c 1.9.0 (the C extension) refuses every memoryview, also one that is read-only, and asks for "a read-only
# bytes-like object": whoever digests slices of a buffer has to copy each of them. The pure Python implementation of the
# same package takes them, so code that was tried with one may fail with the other.
#
# Seen with google-crc32c 1.9.0 on CPython 3.11 and 3.12, Linux x86-64:
#   c      bytes       e3069283
#   c      bytearray   TypeError: argument 1 must be read-only bytes-like object, not bytearray
#   c      memoryview  TypeError: argument 1 must be read-only bytes-like object, not memoryview
#   python bytes       e3069283
#   python bytearray   e3069283
#   python memoryview  e3069283
# Fails when that has changed. Needs a package index; not part of the tests.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'google-crc32c==1.9.0'
"$work/venv/bin/python" - <<'PY' | tee "$work/seen"
from google_crc32c import cext, python

data = b"123456789"
for name, value in (("c", cext.value), ("python", python.value)):
    for view in (data, bytearray(data), memoryview(data)):  # memoryview(bytes) is read-only
        try:
            result = f"{value(view):08x}"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        print(f"{name:6} {type(view).__name__:11} {result}")
PY
diff "$work/seen" - <<'SEEN'
c      bytes       e3069283
c      bytearray   TypeError: argument 1 must be read-only bytes-like object, not bytearray
c      memoryview  TypeError: argument 1 must be read-only bytes-like object, not memoryview
python bytes       e3069283
python bytearray   e3069283
python memoryview  e3069283
SEEN
echo "as seen before: the C extension takes no memoryview"
