"""A base in memory: loading, architecture families, chat templates, adapters, interventions, compiled forms."""
