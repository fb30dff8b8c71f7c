"""Sabotages of busq: what is taken out, in which copy of the tree, and what must notice; the door is sabotage.py."""
