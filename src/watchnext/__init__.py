"""The two-stage recommender of "Deep Neural Networks for YouTube Recommendations" as an MLOps project.

Importing this package sets three environment variables before TensorFlow can be imported, because each of
them is read only once, at that import: TensorFlow Recommenders needs Keras 2, and nobody needs to read
TensorFlow's start-up noise. A value that the user has set stays.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__version__ = "0.1.0"
