"""Tests of what runs on asyncio for both ends."""
