"""The Show-o family: one Phi transformer that reads images and writes them as discrete codes."""
