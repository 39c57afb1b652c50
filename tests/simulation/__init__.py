"""Many virtual days of customers, schedulers and workers on a real database, with faults, as a seed decides."""
