"""The scheduler: events in, commands out. Begin with `scheduler.py`; every call in it is a file name."""

from saga.scheduler.scheduler import Scheduler

__all__ = ["Scheduler"]
