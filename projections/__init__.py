"""How events become rows: the tables, and one pure `rows(event)` per noun."""
