"""Experiments with several network paths, after those that the NVMe over MPTCP series and its talk published."""
