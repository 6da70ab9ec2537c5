"""The pure core: no clock, no I/O, no asyncio. Time arrives inside the event."""
