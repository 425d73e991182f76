"""Prefect flows and the local servers that they run on; only this package imports Prefect."""
