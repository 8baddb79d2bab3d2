"""The lm-eval plugin: the model `em-local`, and lm-eval's command line with our tasks."""
