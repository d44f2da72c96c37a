"""What a running target shows to Prometheus: metric families, made of what it counts, and the page that has them.

It must not be known to what is counted: this package reads the target, its connections and their meters from outside.
The format is that of the official client library, `prometheus_client`, which is the extra ``metrics``.
"""

from __future__ import annotations

from typing import Final

DEFAULT_PORT: Final = 9950
