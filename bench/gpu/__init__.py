"""``make gpu-check``: device time held against torch's profiler, on a machine with a GPU."""
