"""The parts of `train_tiny.py`: corpus, model, training, checkpoint and evaluation."""

import os

# Read by OpenMP when torch loads, so before any import of it. Threads that spin at barriers while
# another program holds the second core made a step seven times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
