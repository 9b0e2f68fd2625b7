"""The torch engine against `transformers`: same weights, same logits, same tokens."""
