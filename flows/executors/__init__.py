"""Where stages run: in this process, in several of this machine, or on a work pool.

Nothing is imported here: processes that do a shard start without Prefect.
"""
