from .scorers.loading import load as load
