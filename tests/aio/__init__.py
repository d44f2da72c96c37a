"""Tests of the asyncio parts that both ends share."""
