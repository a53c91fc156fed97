"""The rows are made by workers on a Ray cluster, one for each node; the run alone commits them.

`driver.py` is the runner, `crew.py` the workers that are up, `worker.py` one of them, which runs the native flow.
`shards.py` says which sources go where, `shares.py` how many requests each worker may have in flight.
"""
