"""Commands that use several packages: demo, study, doctor, verify, content checks."""
