"""Run in the guest: persistent reservations of the kernel's block layer (linux/pr.h), by ioctls.

python3 pr_ioctl.py DEVICE ACTION [KEY...] [TYPE]     prints the outcome: 0, a status of the kernel, or an error's name

    register OLD NEW      reserve KEY TYPE      release KEY TYPE      clear KEY
    preempt OWN OTHER TYPE                      preempt-abort OWN OTHER TYPE
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

WRITE = 1 << 30  # _IOW
ACTIONS = {
    # number, layout, how many of its fields are arguments
    "register": (200, "<QQII", 2),
    "reserve": (201, "<QII", 2),
    "release": (202, "<QII", 2),
    "preempt": (203, "<QQII", 3),
    "preempt-abort": (204, "<QQII", 3),
    "clear": (205, "<QII", 1),
}


def main(device: str, action: str, *words: str) -> str:
    """Call the ioctl that the command line names, and print the outcome."""
    number, layout, count = ACTIONS[action]
    if len(words) != count:
        raise SystemExit(f"{action} takes {count} numbers")
    values = [int(word, 0) for word in words]
    zeroes = [0] * (len(layout) - 1 - count)
    data = struct.pack(layout, *values, *zeroes)
    request = WRITE | len(data) << 16 | ord("p") << 8 | number
    descriptor = os.open(device, os.O_RDWR)
    try:
        # With a mutable buffer ioctl() returns the result and not the buffer.
        return str(fcntl.ioctl(descriptor, request, bytearray(data), True))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
