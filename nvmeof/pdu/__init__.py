"""NVMe/TCP PDUs: layouts, digests and the checks of a PDU's header (NVMe TCP Transport specification, section 3.6).

Reading order: :mod:`header` (types, flags, the common header), :mod:`handshake`, :mod:`capsule`, :mod:`transfer`,
:mod:`termination`, :mod:`digest`, :mod:`framer`.
"""
