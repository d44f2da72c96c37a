"""The target's command line: its options, the target made of them, and what is said and done while it serves.

Nothing here knows how a command of NVMe is executed. The options as click has them are in `nvmeof.target.__main__`.
"""
