-- Whether the worker began to execute what it claimed: a claim that never began costs no attempt.
ALTER TABLE run_leases ADD COLUMN begun boolean NOT NULL DEFAULT false;
