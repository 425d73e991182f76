"""MLflow: the only place that imports it, runs and registry; everything works without it too."""
