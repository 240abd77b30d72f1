"""Embeddings of videos, the features before the classifier: kept while they are made, as parquet, and compared."""
