"""The report: one self-contained page from logs, verdicts and studies, with figures and tables as files. No torch."""
