"""How the shipped models of the shapes world are made."""
