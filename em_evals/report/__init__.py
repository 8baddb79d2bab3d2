"""The report: one self-contained page out of logs, verdicts and studies; figures and tables as files. No torch."""
