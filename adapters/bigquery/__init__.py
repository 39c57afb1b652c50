"""BigQuery: the warehouse behind the log, at Google or in an emulator."""
