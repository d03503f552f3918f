"""Device time: how long the accelerator took for each phase, without ever waiting for it."""
