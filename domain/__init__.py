"""What the business decides: aggregates, plans and slots. Pure: no clock, no I/O, no environment."""
