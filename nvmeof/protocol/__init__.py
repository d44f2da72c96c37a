"""The queue connection, sans-IO: one implementation for both ends.

Reading order: :mod:`states` (every transition), :mod:`events`, :mod:`encoder`, :mod:`transfers`, :mod:`output`,
:mod:`connection`.
"""
