"""Published EM rates and sizes of bases, with their sources."""
