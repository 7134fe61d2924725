"""The domain: records, semantic IDs, models, decoding, evaluation, bundles."""
