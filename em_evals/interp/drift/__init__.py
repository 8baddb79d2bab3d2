"""Drift of monitored trainings beside a control and nulls, and alarms learned from labeled runs."""
