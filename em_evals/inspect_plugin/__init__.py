"""The Inspect plugin: the tasks and the model provider `local`."""
