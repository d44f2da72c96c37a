"""What both command lines share: standard streams, option types, help. Knows nothing of NVMe."""
