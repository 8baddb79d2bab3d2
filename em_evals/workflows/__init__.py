"""Commands that use several rooms: demo, study, doctor, verify, content checks."""
