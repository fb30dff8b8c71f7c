"""The judge of a run: what `check_history.py` is made of. Nothing here imports busq."""
