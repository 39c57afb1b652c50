"""What GET routes and logins read: SQL over the operational tables, one file per noun."""
