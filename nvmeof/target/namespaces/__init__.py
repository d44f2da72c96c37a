"""What a namespace is, and what is known of its blocks: zones, reservations, unreadable blocks, formats.

Must not know subsystems, controllers or how a command arrives.
"""
