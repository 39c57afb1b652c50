"""How the world is reached: HTTP, PostgreSQL, BigQuery, keys, mail, pipelines, the command line."""
