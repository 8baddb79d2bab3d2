"""What Inspect loads: the tasks and the model provider `local`."""
